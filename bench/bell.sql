-- psql: the organization :name with :events events, evenly over the last :days days.
-- Events happen in 1,000 workspaces, one in three in none. Who calls: an owner, a member of five of
-- the workspaces, and one of 10,000, all of them among these; of each one who has read nothing, one
-- who has read half, and one who has read all. Administrators beside them, numbered, have read nothing.
insert into users (id, organization_id, name, email, org_role)
select :'name' || '/' || role || '/' || read, :'name', role, role || '@bench.example',
  case role when 'owner' then 255 else 0 end
from unnest(array['owner', 'few', 'many']) role, unnest(array['nothing', 'half', 'all']) read
union all
select :'name' || '/' || n, :'name', 'administrator', 'administrator@bench.example', 254
from generate_series(1, 200) n;

insert into workspace_user (workspace_id, user_id)
select :'name' || '/w' || w, u.id
from users u, generate_series(1, 10000) w
where u.organization_id = :'name'
  and (u.name = 'few' and w <= 5 or u.name = 'many');

insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id, json_data)
select
  :'name',
  e,
  now() - (:events - e) * interval '1 day' * :days / :events,
  e % 14,
  e % 3,
  'thing-' || e,
  :'name' || '/' || 1 + e % 50,
  case when e % 3 > 0 then :'name' || '/w' || 1 + e % 1000 end,
  '{"name": "thing-' || e || '"}'
from generate_series(1, :events) e;

insert into system_event_read (organization_id, user_id, event_id)
select :'name', u.id, e
from users u, generate_series(1, :events) e
where u.organization_id = :'name'
  and (u.id like '%/half' and e % 2 = 0 or u.id like '%/all')
order by 1, 2, 3;
