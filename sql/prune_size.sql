-- Before pruning: about how much there is to look at, and is the log there at all?
--
-- No parameters. Returns one row: rows, an estimate of the read rows, 0 where there are no statistics
-- yet; has_events, whether the log holds any event.
select
  (
    select greatest(c.reltuples, 0)::bigint
    from pg_class c
    where c.oid = 'system_event_read'::regclass
  ) as rows,
  exists (select from system_event_log) as has_events
