-- Says which of these server processes are still there, and are ours; tells those that are idle to end.
--
-- $1 text[]  process ids, as digits
--
-- Returns a row (pid, told) for each. Everybody may end the sessions of their own role.
--
-- A process that was frozen may have a statement before it that it has not read: it would do it once
-- it thaws, after its callers were answered 503. Until then it is idle, and told to end, it reads
-- nothing more. One at work is left alone: where its commit waits for a replica, to end it would make
-- the commit seen without the replica.
--
-- materialized: nothing is told to a process before it is known to be ours.
with ours as materialized (
  select a.pid, a.state
  from pg_stat_activity a
  where a.pid::text = any ($1::text[]) and a.usename = current_user
)
select o.pid, case when o.state like 'idle%' then pg_terminate_backend(o.pid) end as told
from ours o
