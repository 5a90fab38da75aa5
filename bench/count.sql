-- psql: how many read rows there are.
select count(*) from system_event_read;
