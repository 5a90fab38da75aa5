-- The tables that can be seen, wherever in the search_path they are: one may have been moved.
--
-- No parameters. Returns a row (relname) for each whose name is of ours.
select relname
from pg_class
where relkind = 'r' and relname like 'system\_event\_read%' and pg_table_is_visible(oid)
