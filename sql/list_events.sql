-- Lists the events that a caller may see, newest first, each with the caller's read state.
--
-- $1 text         caller
-- $2 text         the caller's organization, as caller.sql just said; null: looked up in here
-- $3 timestamptz  from, inclusive; null: open, or the last 24 hours where $4 is null too
-- $4 timestamptz  to, inclusive; a time in whole milliseconds, as answers have it, includes all of
--                 that millisecond; null: open
-- $5 text         context id; null: any, as for all below
-- $6 smallint     context, as a number
-- $7 smallint     event, as a number
-- $8 text         user who did it
-- $9 text         workspace it happened in
-- $10 boolean     only what the caller has not read
-- $11 bigint      how many to skip
-- $12 bigint      how many to take
-- $13 bigint      how many events of the organization's window to look at, newest first, at most;
--                 below 2^63 - 1
--
-- Returns no row where the caller is not in an organization, or not in $2; caller.sql tells why.
-- Otherwise at least one, each with the total among the events looked at, whether the window holds
-- older ones ("more"), and then the time of the oldest one looked at ("until", else null); where
-- nothing is on the page, a single row whose id is null.
--
-- Who sees what is said in system_event_visible (migrations/views.sql), and again in each statement
-- whose bound has to come before it. tests/http/test_agreement.py holds them to one model.
--
-- Plans. They do not depend on statistics, nor on how large the organization is among the others:
-- * The organization is a value, not a join, so the log is cut by (organization_id, timestamp). As
--   a join, analyzed tables of few organizations are read by time alone, through all of them.
--   Where $2 is given, a distributed PostgreSQL folds the coalesce, and asks one shard; but the
--   planner then knows the organization, and where statistics are older than it, it may read all of
--   its events. So $2 is null on one machine.
-- * A limit that is a subselect is one that the planner cannot know. It takes it for a tenth of the
--   rows, and that favours reading the index in order over collecting all and sorting. A parallel
--   plan would collect and sort too (seen on 15); pg_backend_pid() rules it out.
-- * A subselect in parentheses is never turned into a join: memberships and read state are looked
--   up per event, by their whole keys, whatever else those tables hold.
-- * Details are fetched for the page alone, by organization, time and id, so that either index of
--   the log finds the one row.
with caller as materialized (
  select u.organization_id, u.org_role in (254, 255) as sees_all
  from users u
  where u.id = $1::text and u.organization_id = coalesce($2::text, u.organization_id)
),
scanned as (
  select e.id, e."timestamp", e.context_id, e.context, e.event, e.user_id, e.workspace_id
  from system_event_log e
  where e.organization_id = coalesce($2::text, (select c.organization_id from caller c))
    and e."timestamp" >= coalesce(
      $3::timestamptz,
      case when $4::timestamptz is null then now() - interval '24 hours' else '-infinity' end
    )
    and e."timestamp" > '-infinity'
    and e."timestamp" < coalesce(
      $4::timestamptz + case
        when $4::timestamptz = date_trunc('milliseconds', $4::timestamptz)
          then interval '1 millisecond'
        else interval '1 microsecond'
      end,
      'infinity'
    )
    and exists (select from caller)
    and pg_backend_pid() is not null
  order by e."timestamp" desc, e.id desc
  limit (select $13::bigint + 1)
),
looked as materialized (
  select
    s.id,
    s."timestamp",
    -- null: not for this caller, or not asked for
    case
      when ($5::text is null or s.context_id = $5::text)
        and ($6::smallint is null or s.context = $6::smallint)
        and ($7::smallint is null or s.event = $7::smallint)
        and ($8::text is null or s.user_id = $8::text)
        and ($9::text is null or s.workspace_id = $9::text)
        and (
          (select c.sees_all from caller c)
          or s.user_id = $1::text
          or (
            select true from workspace_user w
            where w.user_id = $1::text and w.workspace_id = s.workspace_id
            limit 1
          )
        )
      then (
        select true from system_event_read r
        where r.organization_id = coalesce($2::text, (select c.organization_id from caller c))
          and r.user_id = $1::text
          and r.event_id = s.id
      ) is null
    end as unread
  from scanned s
),
-- The event behind the bound, if there is one: it only says that there is more.
beyond as materialized (
  select l.id from looked l
  where (select count(*) > $13::bigint from looked)
  order by l."timestamp", l.id
  limit 1
),
page as (
  select l.id, l."timestamp", l.unread
  from looked l
  where (l.unread or not $10::boolean and l.unread is not null)
    and l.id is distinct from (select b.id from beyond b)
  order by l."timestamp" desc, l.id desc
  offset $11::bigint
  limit $12::bigint
),
summary as (
  select
    count(*) filter (where l.unread or not $10::boolean and l.unread is not null) as total,
    min(l."timestamp") as oldest
  from looked l
  where l.id is distinct from (select b.id from beyond b)
)
select
  summary.total,
  exists (select from beyond) as more,
  case when exists (select from beyond)
    then to_char(summary.oldest at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
  end as until,
  e.id,
  to_char(e."timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "timestamp",
  coalesce(e.context_id, '') as "contextId",
  coalesce(
    (array[
      'workspace', 'bucket', 'repo', 'user', 'org', 'workspaceuser', 'apikey', 'usersettings',
      'orgsettings', 'flashbacknode', 'orgkey', 'aillm', 'aillmapikey', 'conversation'
    ])[e.context + 1],
    e.context::text,
    ''
  ) as context,
  coalesce((array['created', 'updated', 'deleted'])[e.event + 1], e.event::text, '') as event,
  e.organization_id as "orgId",
  coalesce(e.user_id, '') as "userId",
  coalesce(e.actor[1], '') as "userName",
  coalesce(e.actor[2], '') as "userEmail",
  e.workspace_id as "workspaceId",
  e.json_data as "jsonData",
  page.unread as "showUnread"
from caller
cross join summary
left join page on true
left join lateral (
  select
    l.*,
    (
      select array[a.name::text, a.email::text] from users a
      where a.id = l.user_id and a.organization_id = l.organization_id
    ) as actor
  from system_event_log l
  where l.organization_id = coalesce($2::text, (select c.organization_id from caller c))
    and l."timestamp" = page."timestamp"
    and l.id = page.id
  offset 0
) e on true
order by page."timestamp" desc, page.id desc
