-- Finds the read rows of a user behind a key, in all organizations, also those of the past.
--
-- $1 text    organization of the last row that was found; at first ''
-- $2 text    user
-- $3 bigint  event of the last row that was found; at first the least bigint
-- $4 bigint  how many rows to find, at most
-- $5 integer how many further organizations to look into, at most
--
-- Returns no row where nothing is behind the key. Else a row (organization_id, user_id, event_id,
-- number, reason) for each that is found, in the order of the key; reason is 'user'. An organization
-- without one has a row too, whose reason is null: from there it goes on. number says how many
-- organizations were looked into before.
--
-- Takes no locks. The organization leads the key, so each is looked for from the one before it (a
-- skip scan by hand: PostgreSQL 15 has none): what is read does not depend on what others have read.
with recursive organization (id, number) as (
  select $1::text, 0
  union all
  select
    (
      select r.organization_id
      from system_event_read r
      where r.organization_id > o.id
      order by r.organization_id
      limit 1
    ),
    o.number + 1
  from organization o
  where o.id is not null and o.number < $5::integer
)
select
  o.id as organization_id,
  $2::text as user_id,
  coalesce(found.event_id, 9223372036854775807) as event_id,
  o.number,
  case when found.event_id is not null then 'user' end as reason
from organization o
left join lateral (
  select r.event_id
  from system_event_read r
  where r.organization_id = o.id
    and r.user_id = $2::text
    and r.event_id > case when o.number = 0 then $3::bigint else -9223372036854775808 end
  order by r.event_id
  limit $4::bigint
) found on true
where o.id is not null and (found.event_id is not null or o.number > 0)
order by o.number, found.event_id
limit $4::bigint
