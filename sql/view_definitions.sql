-- What a database has of our views: their queries, options and comments, in one text.
--
-- No parameters. Returns one row (definitions). Differs where a view is gone or was changed by hand.
select coalesce(
  string_agg(
    concat_ws(' ', c.relname, c.reloptions, obj_description(c.oid), pg_get_viewdef(c.oid)),
    e'\n' order by c.relname
  ),
  ''
) as definitions
from pg_class c
where c.relkind = 'v'
  and c.relname like 'system\_event\_%'
  and c.relname <> 'system_event_log'  -- the platform's
  and pg_table_is_visible(c.oid)
