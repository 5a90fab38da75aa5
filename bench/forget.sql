-- psql: back to no read state at all.
truncate system_event_read;
