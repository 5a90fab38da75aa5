-- psql: :organizations of 20 users and 500 events of the last 24 hours, ids of :length characters; each
-- event is read by all, event after event, as they come in. Nobody vacuums.
alter table system_event_read set (autovacuum_enabled = off);
create function named(kind text, number int) returns text immutable language sql
  return left(md5(kind || number)::uuid::text, :length);
insert into users (id, organization_id, name, email, org_role)
select named('user', u), named('organization', 1 + (u - 1) / 20), 'User', 'user@acme.example', 255
from generate_series(1, 20 * :organizations) u;
insert into system_event_log (organization_id, id, "timestamp", context, event, context_id, user_id)
select named('organization', o), e, now() - (500 - e) * interval '1 minute', 0, 0, '', named('user', 20 * o)
from generate_series(1, :organizations) o, generate_series(1, 500) e;
vacuum analyze users, system_event_log;
insert into system_event_read (organization_id, user_id, event_id)
select u.organization_id, u.id, e
from generate_series(1, 500) e, users u
order by e, md5(u.id);
analyze system_event_read;
