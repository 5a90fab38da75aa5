-- Counts what a caller has not read, among the newest events of a window.
--
-- $1 text         caller
-- $2 text         the caller's organization, as caller.sql just said; null: looked up in here
-- $3 to $9        from, to, context id, context, event, user, workspace, as in list_events.sql
-- $10 bigint      how many events of the organization's window to look at, newest first, at most;
--                 below 2^63 - 1
--
-- Returns no row where the caller is not in an organization, or not in $2; caller.sql tells why.
-- Otherwise one: count, and whether the window holds older events, not looked at ("more").
--
-- Reads as list_events.sql does: see there for the plans, and for who sees what. offset 0 keeps "unread"
-- from being worked out for each of its uses; to keep the rows would cost a fifth more.
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
  limit (select $10::bigint + 1)
),
looked as (
  select
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
  offset 0
),
summary as (
  select
    count(*) > $10::bigint as more,
    count(*) filter (where l.unread) - case
      -- The event behind the bound, the last of the rows, only says that there is more.
      when count(*) > $10::bigint and (array_agg(l.unread))[count(*)] then 1
      else 0
    end as count
  from looked l
)
select summary.count, summary.more
from caller
cross join summary
