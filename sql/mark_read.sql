-- Marks events as read for N callers at once, and says who the callers are.
--
-- $1 text[]   callers: the users who ask, each once or more
-- $2 text[]   owners: for each wanted event, the caller who wants it
-- $3 bigint[] ids: for each wanted event, its id; as long as $2
--
-- Returns a row (user_id, organization_id) for each caller that exists; organization_id is null for
-- a user without one. Ids that do not exist in the caller's organization write nothing and are not
-- told apart from those that do.
--
-- Safe under concurrency: marking again conflicts and does nothing, so the first read_at stays;
-- rows go in in key order, so that overlapping statements wait for each other and never in a circle.
--
-- The case is always true where the join holds. It ties the organization to the request as well as
-- to the user, and so leaves the planner one way to reach an event: by its whole key. Without it, a
-- generic plan on tables never analyzed looks up the organization alone and throws away, for each
-- id, every other event of it. The organization written is the event row's own column: that is what
-- lets a distributed PostgreSQL run the insert on the shards.
with marked as (
  insert into system_event_read (organization_id, user_id, event_id)
  select e.organization_id, u.id, e.id
  from unnest($2::text[], $3::bigint[]) as request (user_id, event_id)
  join users u on u.id = request.user_id
  join system_event_log e
    on e.organization_id = case when u.id = request.user_id then u.organization_id end
    and e.id = request.event_id
  order by e.organization_id, u.id, e.id
  on conflict do nothing
)
select u.id as user_id, u.organization_id
from users u
where u.id = any ($1::text[])
