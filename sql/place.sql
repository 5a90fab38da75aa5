-- Says where an event is in the list, for mark_all.sql.
--
-- $1 text    caller
-- $2 text    the caller's organization, as caller.sql just said; null: looked up in here
-- $3 bigint  event
--
-- Returns no row where the caller is not in an organization, or not in $2; caller.sql tells why.
-- Otherwise one: organization_id; and the place, "at" (the time, since 1970 in UTC) and id, null where
-- no event of that id is in the caller's organization, or none that a list could have.
--
-- The range of one and the order leave the primary key as the only good way in: "id = $3" may read
-- all of an organization that is newer than the statistics, by (organization_id, timestamp, id).
-- context is there so that this index alone is not enough.
with caller as materialized (
  select u.organization_id
  from users u
  where u.id = $1::text and u.organization_id = coalesce($2::text, u.organization_id)
)
select
  caller.organization_id,
  e."timestamp" at time zone 'UTC' - timestamp '1970-01-01' as at,
  e.id,
  e.context
from caller
left join lateral (
  select l."timestamp", l.id, l.context
  from system_event_log l
  where l.organization_id = coalesce($2::text, (select c.organization_id from caller c))
    and l.id >= $3::bigint
    and l.id <= $3::bigint
    and l."timestamp" > '-infinity'
    and l."timestamp" < 'infinity'
  order by l.id
  limit 1
) e on true
