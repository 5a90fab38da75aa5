-- psql: fill 256 segments of the write-ahead log (4 GB), which the next checkpoint keeps to be written
-- again (min_wal_size). A server that has run for a while has them; a new one makes each while its
-- callers wait.
select count(pg_logical_emit_message(false, 'bench', n::text)), count(pg_switch_wal())
from generate_series(1, 256) n;
