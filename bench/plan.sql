-- psql: the plan of sql/:statement.sql, run and undone, as JSON: :callers callers with :ids ids each,
-- under plan_cache_mode :mode.
\set text `cat sql/:statement.sql`
prepare statement (text[], text[], text) as :text;
set plan_cache_mode = :mode;
select
  array_agg(distinct md5('user ' || o || '/1')::uuid::text) as callers,
  array_agg(md5('user ' || o || '/1')::uuid::text) as owners,
  string_agg(e::text, ',') as ids
from generate_series(1, :callers) o, generate_series(1, :ids) e
\gset
begin;
explain (analyze, timing off, format json) execute statement (:'callers', :'owners', :'ids');
rollback;
