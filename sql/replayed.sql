-- Says how far a replica has come: what is read on this connection from now on shows all before that.
--
-- No parameters. Returns one row: replayed bigint, in bytes, null on a server that replays nothing;
-- line text, as position.sql has it.
--
-- A position means nothing on another timeline, where a failover has written something else there. Which
-- one is replayed is known from what was last noted in the control file; that may be late (until a
-- checkpoint, 5 minutes), and never early.
select
  case when pg_is_in_recovery() then (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint end as replayed,
  format(
    '%s/%s/%s',
    (select system_identifier from pg_control_system()),
    (select oid from pg_database where datname = current_database()),
    upper(lpad(to_hex(greatest(
      (select timeline_id from pg_control_checkpoint()),
      (select min_recovery_end_timeline from pg_control_recovery())
    )), 8, '0'))
  ) as line
