-- psql: how many connections the service has.
select count(*) from pg_stat_activity where application_name = 'systemevent-read';
