-- Views for whoever opens psql. Who sees what is decided in one of them, system_event_visible, and
-- the service's list reads it too (sql/list_events.sql).
--
-- security_invoker: a view shows its reader what the reader may select from the tables below it, and
-- no more. So all may be granted to everybody, and the service's role needs nothing for them.

create view system_event_visible with (security_invoker = true) as
  select
    u.id as viewer_id,
    e.organization_id,
    e.id as event_id,
    e."timestamp",
    e.context,
    e.event,
    e.context_id,
    e.user_id,
    e.workspace_id,
    e.json_data
  from users u
  join system_event_log e on e.organization_id = u.organization_id
  where u.org_role in (254, 255)
    or e.user_id = u.id
    or exists (
      select from workspace_user w where w.user_id = u.id and w.workspace_id = e.workspace_id
    );
comment on view system_event_visible is
  'who sees what: the owner and administrators all events of their organization, others their own '
  'and those of workspaces they belong to. Ask with: where viewer_id = ''...''';

create view system_event_unread with (security_invoker = true) as
  select v.viewer_id as user_id, v.organization_id, v.event_id, v."timestamp"
  from system_event_visible v
  where not exists (
    select from system_event_read r
    where r.organization_id = v.organization_id
      and r.user_id = v.viewer_id
      and r.event_id = v.event_id
  );
comment on view system_event_unread is
  'what is unread for a user: visible events without a read row. Ask with: where user_id = ''...''';

create view system_event_reader with (security_invoker = true) as
  select r.organization_id, r.event_id, r.user_id, u.name, u.email, r.read_at
  from system_event_read r
  left join users u on u.id = r.user_id;
comment on view system_event_reader is
  'who has read an event, and when. Ask with: where organization_id = ''...'' and event_id = 42';

create view system_event_read_rate with (security_invoker = true) as
  select
    e.organization_id,
    e.id as event_id,
    e."timestamp",
    s.viewers,
    s.readers,
    round(s.readers::numeric / nullif(s.viewers, 0), 3) as read_rate
  from system_event_log e
  cross join lateral (
    select count(*) as viewers, count(r.user_id) as readers
    from system_event_visible v
    left join system_event_read r
      on r.organization_id = v.organization_id
      and r.user_id = v.viewer_id
      and r.event_id = v.event_id
    where v.organization_id = e.organization_id and v.event_id = e.id
  ) s;
comment on view system_event_read_rate is
  'read rate per event: of those who see it, how many have read it. '
  'Ask with: where organization_id = ''...'' and event_id = 42';

grant select
  on system_event_visible, system_event_unread, system_event_reader, system_event_read_rate
  to public;
