-- The list as it was before its bound, with the parameters and columns of sql/list_events.sql: what a
-- badge and a list cost then. $2 and $13 are not used.
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
      $3::timestamptz,
      case when $4::timestamptz is null then now() - interval '24 hours' else '-infinity' end
    )
    and v."timestamp" < coalesce(
      $4::timestamptz + case
        when $4::timestamptz = date_trunc('milliseconds', $4::timestamptz)
          then interval '1 millisecond'
        else interval '1 microsecond'
      end,
      'infinity'
    )
    and isfinite(v."timestamp")
    and ($5::text is null or v.context_id = $5::text)
    and ($6::smallint is null or v.context = $6::smallint)
    and ($7::smallint is null or v.event = $7::smallint)
    and ($8::text is null or v.user_id = $8::text)
    and ($9::text is null or v.workspace_id = $9::text)
    and not ($10::boolean and read.found)
),
page as (
  select * from hit
  order by "timestamp" desc, event_id desc
  offset $11::bigint
  limit $12::bigint
)
select
  (select count(*) from hit) as total,
  false as more,
  null::text as until,
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
where caller.id = $1::text and $2::text is null and $13::bigint > 0
order by page."timestamp" desc, page.event_id desc
