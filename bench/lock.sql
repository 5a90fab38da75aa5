-- psql: locks the row of event 1 of each of :users (ids, with commas between) for :seconds.
insert into system_event_read (organization_id, user_id, event_id)
select organization_id, id, 1 from users where id = any (string_to_array(:'users', ','))
on conflict do nothing;
begin;
delete from system_event_read
where event_id = 1 and user_id = any (string_to_array(:'users', ','));
select pg_sleep(:seconds);
rollback;
