-- Marks as read what a caller may see, newest first, from a place in the list on: one chunk.
--
-- $1 text      caller
-- $2 text      the caller's organization, as caller.sql just said; null: looked up in here
-- $3 to $9     from, to, context id, context, event, user, workspace, as in list_events.sql
-- $10 interval the place: time, since 1970 in UTC, and ...
-- $11 bigint   ... id, where to begin, inclusive; null, 0: at the newest
-- $12 text     the organization in which the place is; null: any
-- $13 bigint   how many to mark, at most
-- $14 bigint   how many events to look at, at most
--
-- Returns no row where the caller is not in an organization, or not in $2; caller.sql tells why.
-- Otherwise one: organization_id; "since", when the last 24 hours began, where they are the window; and
-- "at" and id of the place where the next chunk begins, null where there is nothing left. A caller who
-- is not, or no more, in $12 marks nothing, and nothing is left.
--
-- Safe under concurrency: rows go in in key order (all are of one organization and user), as in
-- mark_read.sql, so that overlapping statements wait for each other and never in a circle; what
-- somebody else has marked since keeps its read_at.
--
-- Reads as page_events.sql does: what is read already is passed over, and nothing is locked for it.
-- The organization written is the event row's own column, as in mark_read.sql.
with caller as materialized (
  select u.organization_id, u.org_role in (254, 255) as sees_all
  from users u
  where u.id = $1::text and u.organization_id = coalesce($2::text, u.organization_id)
),
beginning as materialized (
  select
    least(place.at, window_end.at) as at,
    case when place.at < window_end.at then $11::bigint else -9223372036854775808 end as id
  from
    (
      select coalesce(
        (timestamp '1970-01-01' + $10::interval) at time zone 'UTC',
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
    e.workspace_id
  from system_event_log e
  where e.organization_id = coalesce($2::text, (select c.organization_id from caller c))
    and e."timestamp" >= coalesce(
      $3::timestamptz,
      case when $4::timestamptz is null then now() - interval '24 hours' else '-infinity' end
    )
    and e."timestamp" > '-infinity'
    and (e."timestamp", e.id) <= (
      (select b.at from beginning b),
      (select b.id from beginning b)
    )
    and exists (
      select from caller c where c.organization_id = coalesce($12::text, c.organization_id)
    )
  order by e."timestamp" desc, e.id desc
  limit (select $14::bigint)
),
looked as (
  select
    s.organization_id,
    s.id,
    s."timestamp",
    row_number() over (order by s."timestamp" desc, s.id desc) = $14::bigint as bound,
    ($5::text is null or s.context_id = $5::text)
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
      and (
        select true from system_event_read r
        where r.organization_id = coalesce($2::text, (select c.organization_id from caller c))
          and r.user_id = $1::text
          and r.event_id = s.id
      ) is null as unread
  from scanned s
),
chunk as materialized (
  select * from looked l
  where l.unread or l.bound
  order by l."timestamp" desc, l.id desc
  limit (select $13::bigint)
),
marked as (
  insert into system_event_read (organization_id, user_id, event_id)
  select c.organization_id, $1::text, c.id
  from chunk c
  where c.unread
  order by c.id
  on conflict do nothing
)
select
  caller.organization_id,
  case
    when $3::timestamptz is null and $4::timestamptz is null then now() - interval '24 hours'
  end as since,
  last."timestamp" at time zone 'UTC' - timestamp '1970-01-01' as at,
  last.id - 1 as id
from caller
left join lateral (
  select c."timestamp", c.id
  from chunk c
  where (select count(*) = $13::bigint or bool_or(b.bound) from chunk b)
  order by c."timestamp", c.id
  limit 1
) last on true
