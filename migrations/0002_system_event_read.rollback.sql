drop table system_event_read;
revoke select on system_event_read_migration from public;
comment on table system_event_read_migration is null;
