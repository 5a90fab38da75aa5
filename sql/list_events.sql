-- Lists the events that a caller may see, newest first, each with the caller's read state.
--
-- $1 text         caller
-- $2 timestamptz  from, inclusive; null: open, or the last 24 hours where $3 is null too
-- $3 timestamptz  to, inclusive; a time in whole milliseconds, as answers have it, includes all of
--                 that millisecond; null: open
-- $4 text         context id; null: any, as for all below
-- $5 smallint     context, as a number
-- $6 smallint     event, as a number
-- $7 text         user who did it
-- $8 text         workspace it happened in
-- $9 boolean      only what the caller has not read
-- $10 bigint      how many to skip
-- $11 bigint      how many to take
--
-- Returns no row for a caller that does not exist. Otherwise at least one, each with the caller's
-- organization_id (null: none) and the total; where nothing is on the page, a single row whose id
-- is null.
--
-- Who sees what is system_event_visible's to say (migrations/0003_views.sql). The cost is bounded by
-- the window of time: the index on (organization_id, timestamp) is cut at both ends, and the read
-- state is looked up per event, by its whole key, however long the history behind it. Details are
-- fetched for the page alone.
with hit as (
  select v.organization_id, v.event_id, v."timestamp", read.found as is_read
  from system_event_visible v
  cross join lateral (
    select exists (
      select from system_event_read r
      where r.organization_id = v.organization_id
        and r.user_id = v.viewer_id
        and r.event_id = v.event_id
    ) as found
    offset 0
  ) read
  where v.viewer_id = $1::text
    and v."timestamp" >= coalesce(
      $2::timestamptz,
      case when $3::timestamptz is null then now() - interval '24 hours' else '-infinity' end
    )
    and v."timestamp" < coalesce(
      $3::timestamptz + case
        when $3::timestamptz = date_trunc('milliseconds', $3::timestamptz)
          then interval '1 millisecond'
        else interval '1 microsecond'
      end,
      'infinity'
    )
    and isfinite(v."timestamp")
    and ($4::text is null or v.context_id = $4::text)
    and ($5::smallint is null or v.context = $5::smallint)
    and ($6::smallint is null or v.event = $6::smallint)
    and ($7::text is null or v.user_id = $7::text)
    and ($8::text is null or v.workspace_id = $8::text)
    and not ($9::boolean and read.found)
),
page as (
  select * from hit
  order by "timestamp" desc, event_id desc
  offset $10::bigint
  limit $11::bigint
)
select
  caller.organization_id as caller_organization_id,
  (select count(*) from hit) as total,
  e.id,
  to_char(e."timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "timestamp",
  e.context_id as "contextId",
  coalesce(
    (array[
      'workspace', 'bucket', 'repo', 'user', 'org', 'workspaceuser', 'apikey', 'usersettings',
      'orgsettings', 'flashbacknode', 'orgkey', 'aillm', 'aillmapikey', 'conversation'
    ])[e.context + 1],
    e.context::text
  ) as context,
  coalesce((array['created', 'updated', 'deleted'])[e.event + 1], e.event::text) as event,
  e.organization_id as "orgId",
  e.user_id as "userId",
  coalesce(actor.name, '') as "userName",
  coalesce(actor.email, '') as "userEmail",
  e.workspace_id as "workspaceId",
  e.json_data as "jsonData",
  not page.is_read as "showUnread"
from users caller
left join page on true
left join system_event_log e
  on e.organization_id = page.organization_id and e.id = page.event_id
left join users actor on actor.id = e.user_id
where caller.id = $1::text
order by page."timestamp" desc, page.event_id desc
