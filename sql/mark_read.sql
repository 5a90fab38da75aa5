-- Marks events as read for N callers at once, and says who the callers are.
--
-- $1 text[] callers: the users who ask, each once or more
-- $2 text[] owners: for each wanted event, the caller who wants it
-- $3 text   ids: for each wanted event, its id, in digits, with commas between; as many as $2
--
-- Returns a row (user_id, organization_id) for each caller that exists; organization_id is null for
-- a user without one. Ids that do not exist in the caller's organization write nothing and are not
-- told apart from those that do.
--
-- Safe under concurrency: marking again conflicts and does nothing, so the first read_at stays;
-- rows go in in key order, so that overlapping statements wait for each other and never in a circle.
--
-- What a case compares is always true where the join holds. Each ties its column to the request as
-- well as to the user, and so leaves the planner one way to reach an event: by its whole key. Without
-- the first, a generic plan on tables never analyzed looks up the organization alone and throws away,
-- for each id, every other event of it; without the second, PostgreSQL 18 may look for the id in one
-- organization after another (a skip scan). The organization written is the event row's own column: that is what
-- lets a distributed PostgreSQL run the insert on the shards.
--
-- The ids come as a text, since asyncpg looks an array of bigint up in the catalog: a query more on
-- each new connection, and one that a distributed PostgreSQL is slow at. string_to_array is
-- immutable, so the planner sees an array of constants, as that database needs it.
with marked as (
  insert into system_event_read (organization_id, user_id, event_id)
  select e.organization_id, u.id, e.id
  from unnest($2::text[], string_to_array($3::text, ',')::bigint[])
    as request (user_id, event_id)
  join users u on u.id = request.user_id
  join system_event_log e
    on e.organization_id = case when u.id = request.user_id then u.organization_id end
    and e.id = case when u.id = request.user_id then request.event_id end
  order by e.organization_id, u.id, e.id
  on conflict do nothing
)
select u.id as user_id, u.organization_id
from users u
where u.id = any ($1::text[])
