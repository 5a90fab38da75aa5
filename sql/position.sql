-- Says how far the primary has come, and when: whatever was committed by then is before that position.
--
-- No parameters. Returns one row: at float8, seconds since 1970; position bigint, in bytes; line text,
-- the database, and the timeline that it is on (see replayed.sql).
--
-- The time is that of the statement's arrival, so it is before the position is taken. The position is
-- that of what is inserted: with synchronous_commit off a commit is answered before it is written. Where
-- the last record fills its page, it lies behind the header of the next page (24 bytes, 40 at the start
-- of a segment), while a replica that has all of it says: before. So headers are taken off.
with here as materialized (select pg_current_wal_insert_lsn() as lsn),
inserted as (select lsn, (lsn - '0/0'::pg_lsn)::bigint as bytes from here)
select
  extract(epoch from statement_timestamp())::float8 as at,
  case
    when bytes % pg_size_bytes(current_setting('wal_segment_size')) = 40 then bytes - 40
    when bytes % current_setting('wal_block_size')::bigint = 24 then bytes - 24
    else bytes
  end as position,
  format(
    '%s/%s/%s',
    (select system_identifier from pg_control_system()),
    (select oid from pg_database where datname = current_database()),
    left(pg_walfile_name(lsn), 8)
  ) as line
from inserted
