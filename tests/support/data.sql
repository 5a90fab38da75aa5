-- Two organizations of the same shape. In acme: owner, admin, member of workspace w1, another user;
-- ids 1..20 exist in both, 21..30 in globex alone; nobody belongs to no organization.
insert into users (id, organization_id, name, email, org_role) values
  ('owner', 'acme', 'Owen Owner', 'owner@acme.example', 255),
  ('admin', 'acme', 'Ada Admin', 'admin@acme.example', 254),
  ('alice', 'acme', 'Alice Member', 'alice@acme.example', 0),
  ('bob', 'acme', 'Bob Other', 'bob@acme.example', 0),
  ('gina', 'globex', 'Gina Owner', 'gina@globex.example', 255),
  ('nobody', null, 'Nemo Nobody', 'nemo@example.org', 0);
insert into workspace_user (workspace_id, user_id) values ('w1', 'alice'), ('w2', 'bob');
-- n minutes ago, by alice, bob and owner in turn; every other one in a workspace.
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id, json_data)
select 'acme', n, now() - n * interval '1 minute', n % 14, n % 3, 'thing-' || n,
  (array['alice', 'bob', 'owner'])[1 + n % 3],
  case when n % 2 = 0 then (array['w1', 'w2'])[1 + n / 2 % 2] end,
  case when n % 5 = 0 then '{"n": ' || n || '}' end
from generate_series(1, 20) n;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
select 'globex', n, now() - n * interval '1 minute', 1, 0, 'thing-' || n, 'gina', 'w1'
from generate_series(1, 30) n;
