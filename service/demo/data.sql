-- Demo data, loaded once: three organizations, their users, one user without, and 600 events.
do $$
begin
  if exists (select from users) then
    return;
  end if;

  insert into users (id, organization_id, name, email, org_role) values
    ('ada', 'analytical', 'Ada Lovelace', 'ada@analytical.example', 255),
    ('charles', 'analytical', 'Charles Babbage', 'charles@analytical.example', 254),
    ('luigi', 'analytical', 'Luigi Menabrea', 'luigi@analytical.example', 0),
    ('grace', 'flowmatic', 'Grace Hopper', 'grace@flowmatic.example', 255),
    ('betty', 'flowmatic', 'Betty Holberton', 'betty@flowmatic.example', 2),
    ('jean', 'flowmatic', 'Jean Bartik', 'jean@flowmatic.example', 0),
    ('alan', 'bletchley', 'Alan Turing', 'alan@bletchley.example', 255),
    ('joan', 'bletchley', 'Joan Clarke', 'joan@bletchley.example', 1),
    ('mary', null, 'Mary Somerville', 'mary@example.org', 0);

  insert into workspace_user (workspace_id, user_id) values
    ('engines', 'ada'), ('engines', 'luigi'), ('notes', 'ada'), ('notes', 'charles'),
    ('compilers', 'grace'), ('compilers', 'betty'), ('compilers', 'jean'), ('payroll', 'grace'),
    ('bombe', 'alan'), ('bombe', 'joan');

  -- 200 events for each organization, the newest minutes old, the oldest some ten days.
  insert into system_event_log
    (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id, json_data)
  select
    o.id,
    n,
    now() - ((200 - n) ^ 1.5 * interval '5 minutes') - interval '4 minutes',
    c.context,
    (array[0, 0, 1, 1, 1, 2])[1 + (n * 7) % 6],
    c.name || '-' || 1 + n % 9,
    o.users[1 + (n * 5 + n / 7) % cardinality(o.users)],
    case when c.context in (0, 1, 2, 13) then o.workspaces[1 + n % cardinality(o.workspaces)] end,
    case when n % 3 = 0 then jsonb_build_object('name', c.name || '-' || 1 + n % 9)::text end
  from (values
    ('analytical', array['ada', 'charles', 'luigi'], array['engines', 'notes']),
    ('flowmatic', array['grace', 'betty', 'jean'], array['compilers', 'payroll']),
    ('bletchley', array['alan', 'joan'], array['bombe'])
  ) as o (id, users, workspaces)
  cross join generate_series(1, 200) n
  join (values
    (0, 0, 'workspace'), (1, 1, 'bucket'), (2, 2, 'repo'), (3, 1, 'logs'), (4, 6, 'apikey'),
    (5, 13, 'conversation'), (6, 2, 'site'), (7, 5, 'member')
  ) as c (slot, context, name) on c.slot = (n * 3 + n / 5) % 8;

  -- What is older than two days, the first user of each has read.
  insert into system_event_read (organization_id, user_id, event_id, read_at)
  select e.organization_id, u.id, e.id, e."timestamp" + interval '1 hour'
  from system_event_log e
  join users u on u.organization_id = e.organization_id and u.org_role = 255
  where e."timestamp" < now() - interval '2 days';
end
$$;
