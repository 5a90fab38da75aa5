-- One caller marks events as read: sql/mark_read.sql as one would write it for a single caller.
--
-- $1 text     the caller
-- $2 bigint[] the ids of the events
--
-- Returns the caller, where it exists, with its organization.
with caller as (
  select u.id, u.organization_id from users u where u.id = $1::text
),
marked as (
  insert into system_event_read (organization_id, user_id, event_id)
  select e.organization_id, c.id, e.id
  from caller c
  join system_event_log e on e.organization_id = c.organization_id and e.id = any ($2::bigint[])
  order by e.id
  on conflict do nothing
)
select id, organization_id from caller
