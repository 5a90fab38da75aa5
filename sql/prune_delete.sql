-- Removes read rows by their keys.
--
-- $1 text[] organizations: of each row
-- $2 text[] users: of each row
-- $3 text   events: of each row, in digits, with commas between
--
-- Returns one row (count): how many there were.
--
-- Safe under concurrency: removing what is gone does nothing. It may wait for a row that somebody
-- else has locked while it holds others, so its session has a lock_timeout of next to nothing.
with deleted as (
  delete from system_event_read r
  using unnest($1::text[], $2::text[], string_to_array($3::text, ',')::bigint[])
    as unneeded (organization_id, user_id, event_id)
  where r.organization_id = unneeded.organization_id
    and r.user_id = unneeded.user_id
    and r.event_id = unneeded.event_id
  returning r.event_id
)
select count(*) as count from deleted
