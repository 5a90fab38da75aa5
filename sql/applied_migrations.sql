-- The migrations that are applied: is this the schema that this version of the service knows?
--
-- No parameters. Returns a row (migration_id, migration_hash) for each.
select migration_id, migration_hash from system_event_read_migration
