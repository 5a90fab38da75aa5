-- Marks events as unread for N callers at once, and says who the callers are.
--
-- $1 text[] callers: the users who ask, each once or more
-- $2 text[] owners: for each event to forget, the caller who wants it forgotten
-- $3 text   ids: for each event to forget, its id, in digits, with commas between; as many as $2
--
-- Returns a row (user_id, organization_id) for each caller that exists; organization_id is null for
-- a user without one.
--
-- Safe under concurrency: deleting what is gone does nothing. A delete cannot be sorted portably, so
-- two overlapping statements can deadlock; PostgreSQL ends one of them and the service runs it again.
--
-- Each case is there for the planner, as in mark_read.sql: they leave the whole key as the only way
-- in. With one of them missing, PostgreSQL 18 may read all that the user has ever read (a skip scan).
-- The ids are a text for the reason given there.
with unmarked as (
  delete from system_event_read r
  using unnest($2::text[], string_to_array($3::text, ',')::bigint[])
    as request (user_id, event_id)
  join users u on u.id = request.user_id
  where r.organization_id = case when u.id = request.user_id then u.organization_id end
    and r.user_id = case when u.id = request.user_id then u.id end
    and r.event_id = case when u.id = request.user_id then request.event_id end
)
select u.id as user_id, u.organization_id
from users u
where u.id = any ($1::text[])
