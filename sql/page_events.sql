-- Lists the events that a caller may see, newest first, from a place in the list on.
--
-- $1 text      caller
-- $2 text      the caller's organization, as caller.sql just said; null: looked up in here
-- $3 to $10    from, to, context id, context, event, user, workspace, only unread, as in
--              list_events.sql
-- $11 interval the place: time, since 1970 in UTC, and ...
-- $12 bigint   ... id of the last event that the page before looked at; first page: null, 0
-- $13 bigint   how many to take; one more than the page has tells whether there are more
-- $14 bigint   how many events to look at, at most
--
-- Returns no row where the caller is not in an organization, or not in $2; caller.sql tells why.
-- Otherwise the events found, newest first, until there are $13 or $14 were looked at; where there
-- is none, a single row whose id is null. "since" is when the last 24 hours began, where they are
-- the window: the pages to come ask for that. "at" and id are a row's place. The event at which $14
-- ended the search ("bound") is always the last row; where it is not of this page, its "showUnread"
-- is null.
--
-- Reads as list_events.sql does: see there for the plans, and for who sees what. And:
-- * What lies before the place or behind the page is not read, and nothing is sorted.
-- * The end of the window and the place are one bound. With two, PostgreSQL 18 begins at the end of
--   the window and reads its way to the place.
-- * A place is an interval: drivers do not take every time that a timestamptz may be.
with caller as materialized (
  select u.organization_id, u.org_role in (254, 255) as sees_all
  from users u
  where u.id = $1::text and u.organization_id = coalesce($2::text, u.organization_id)
),
beginning as materialized (
  select
    least(place.at, window_end.at) as at,
    case when place.at < window_end.at then $12::bigint else -9223372036854775808 end as id
  from
    (
      select coalesce(
        (timestamp '1970-01-01' + $11::interval) at time zone 'UTC',
        'infinity'
      ) as at
    ) place,
    (
      select coalesce(
        $4::timestamptz + case
          when $4::timestamptz = date_trunc('milliseconds', $4::timestamptz)
            then interval '1 millisecond'
          else interval '1 microsecond'
        end,
        'infinity'
      ) as at
    ) window_end
),
scanned as (
  select
    e.organization_id, e.id, e."timestamp", e.context_id, e.context, e.event, e.user_id,
    e.workspace_id, e.json_data
  from system_event_log e
  where e.organization_id = coalesce($2::text, (select c.organization_id from caller c))
    and e."timestamp" >= coalesce(
      $3::timestamptz,
      case when $4::timestamptz is null then now() - interval '24 hours' else '-infinity' end
    )
    and e."timestamp" > '-infinity'
    and (e."timestamp", e.id) < (
      (select b.at from beginning b),
      (select b.id from beginning b)
    )
    and exists (select from caller)
    and pg_backend_pid() is not null
  order by e."timestamp" desc, e.id desc
  limit (select $14::bigint)
),
looked as (
  select
    s.*,
    row_number() over (order by s."timestamp" desc, s.id desc) = $14::bigint as bound,
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
page as (
  select
    l.*,
    (
      select array[a.name::text, a.email::text] from users a
      where a.id = l.user_id and a.organization_id = l.organization_id
    ) as actor
  from looked l
  where l.unread or not $10::boolean and l.unread is not null or l.bound
  order by l."timestamp" desc, l.id desc
  limit (select $13::bigint)
)
select
  case
    when $3::timestamptz is null and $4::timestamptz is null then now() - interval '24 hours'
  end as since,
  e."timestamp" at time zone 'UTC' - timestamp '1970-01-01' as at,
  e.bound,
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
  case when e.unread or not $10::boolean then e.unread end as "showUnread"
from caller
left join page e on true
order by e."timestamp" desc, e.id desc
