-- Views for whoever opens psql. Who sees what is decided in one of them, system_event_visible;
-- the service's list says it again, behind its bound (sql/list_events.sql), and a test compares them.
--
-- security_invoker: a view shows its reader what the reader may select from the tables below it, and
-- no more. So all may be granted to everybody, and the service's role needs nothing for them.
--
-- The other files here are applied once and do not change. This one does: `migrate` makes all views
-- anew where a database has them in another form, or not at all. The service itself uses none of them.

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

create view system_event_unread_count with (security_invoker = true) as
  -- Counted by groups of events that the same users see; otherwise each event would be looked at for
  -- each user. A part says how many are added or, where they are read, taken away.
  select part.organization_id, part.user_id, sum(part.events)::bigint as unread
  from (
    select u.organization_id, u.id as user_id, 0 as events
    from users u
    where u.organization_id is not null
    union all
    select u.organization_id, u.id, e.events
    from users u
    join (
      select organization_id, count(*) as events from system_event_log group by organization_id
    ) e on e.organization_id = u.organization_id
    where u.org_role in (254, 255)
    union all
    select e.organization_id, e.user_id, count(*)
    from system_event_log e
    join users u on u.id = e.user_id and u.organization_id = e.organization_id
    where (u.org_role in (254, 255)) is not true
    group by e.organization_id, e.user_id
    union all
    select u.organization_id, u.id, e.events
    from (select distinct user_id, workspace_id from workspace_user) w
    join users u on u.id = w.user_id
    join (
      select organization_id, workspace_id, user_id, count(*) as events
      from system_event_log
      group by organization_id, workspace_id, user_id
    ) e on e.organization_id = u.organization_id and e.workspace_id = w.workspace_id
    where (u.org_role in (254, 255)) is not true and e.user_id is distinct from u.id
    union all
    select r.organization_id, r.user_id, -count(*)
    from system_event_read r
    join users u on u.id = r.user_id and u.organization_id = r.organization_id
    join system_event_log e on e.organization_id = r.organization_id and e.id = r.event_id
    where u.org_role in (254, 255)
      or e.user_id = u.id
      or exists (
        select from workspace_user w where w.user_id = u.id and w.workspace_id = e.workspace_id
      )
    group by r.organization_id, r.user_id
  ) part
  group by part.organization_id, part.user_id;
comment on view system_event_unread_count is
  'how many events are unread, for each user of an organization. '
  'Ask with: where organization_id = ''...'' order by unread desc';

create view system_event_unnoticed with (security_invoker = true) as
  select
    e.organization_id, e.id as event_id, e."timestamp", e.context, e.event, e.context_id, e.user_id
  from system_event_log e
  where not exists (
    select from system_event_read r
    where r.organization_id = e.organization_id and r.event_id = e.id
  );
comment on view system_event_unnoticed is
  'what nobody has read. '
  'Ask with: where organization_id = ''...'' order by "timestamp" desc limit 20';

create view system_event_reader with (security_invoker = true) as
  -- By way of the organization's users, so that each read row is found by its whole key.
  select e.organization_id, e.id as event_id, u.id as user_id, u.name, u.email, r.read_at
  from system_event_log e
  join users u on u.organization_id = e.organization_id
  join system_event_read r
    on r.organization_id = e.organization_id and r.user_id = u.id and r.event_id = e.id;
comment on view system_event_reader is
  'who has read an event, and when; of events that are still there, and users who are still in the '
  'organization. Ask with: where organization_id = ''...'' and event_id = 42';

create view system_event_read_rate with (security_invoker = true) as
  select
    e.organization_id,
    e.id as event_id,
    e."timestamp",
    s.viewers,
    s.readers,
    round(s.readers::numeric / nullif(s.viewers, 0), 3) as read_rate,
    s.half_read_at - e."timestamp" as half_read_after
  from system_event_log e
  cross join lateral (
    select
      count(*) as viewers,
      count(r.user_id) as readers,
      (array_agg(r.read_at order by r.read_at))[((count(*) + 1) / 2)::int] as half_read_at
    from users u
    left join system_event_read r
      on r.organization_id = e.organization_id and r.user_id = u.id and r.event_id = e.id
    where u.organization_id = e.organization_id
      and (
        u.org_role in (254, 255)
        or e.user_id = u.id
        or exists (
          select from workspace_user w where w.user_id = u.id and w.workspace_id = e.workspace_id
        )
      )
  ) s;
comment on view system_event_read_rate is
  'read rate per event: of those who see it, how many have read it, and how soon. '
  'Ask with: where organization_id = ''...'' and event_id = 42, '
  'or: order by "timestamp" desc limit 5';
comment on column system_event_read_rate.viewers is 'how many users see it';
comment on column system_event_read_rate.readers is 'how many of them have read it';
comment on column system_event_read_rate.read_rate is 'readers / viewers; null where nobody sees it';
comment on column system_event_read_rate.half_read_after is
  'how long until half of its viewers had read it; null where fewer have';

create view system_event_read_rate_by_day with (security_invoker = true) as
  select
    e.organization_id,
    e.day,
    count(*) as events,
    sum(v.viewers)::bigint as viewers,
    sum(e.readers)::bigint as readers,
    round(sum(e.readers) / nullif(sum(v.viewers), 0), 3) as read_rate,
    count(e.read_at[((v.viewers + 1) / 2)::int]) as half_read,
    percentile_disc(0.5) within group (
      order by e.read_at[((v.viewers + 1) / 2)::int] - e."timestamp"
    ) as half_read_after
  from (
    select
      e.organization_id,
      (e."timestamp" at time zone 'UTC')::date as day,
      e.id,
      e."timestamp",
      e.user_id,
      e.workspace_id,
      count(r.user_id) as readers,
      array_agg(r.read_at order by r.read_at) as read_at
    from system_event_log e
    left join (system_event_read r join users u on u.id = r.user_id)
      on r.organization_id = e.organization_id
      and r.event_id = e.id
      and u.organization_id = e.organization_id
      and (
        u.org_role in (254, 255)
        or e.user_id = u.id
        or exists (
          select from workspace_user w where w.user_id = u.id and w.workspace_id = e.workspace_id
        )
      )
    group by e.organization_id, day, e.id, e."timestamp", e.user_id, e.workspace_id
  ) e
  -- Who sees an event is counted once for each organization and workspace, not for each event.
  left join (
    select u.organization_id, count(*) as users
    from users u
    where u.org_role in (254, 255)
    group by u.organization_id
  ) administrators on administrators.organization_id = e.organization_id
  left join (
    select u.organization_id, w.workspace_id, count(distinct u.id) as users
    from workspace_user w
    join users u on u.id = w.user_id
    where (u.org_role in (254, 255)) is not true
    group by u.organization_id, w.workspace_id
  ) members on members.organization_id = e.organization_id and members.workspace_id = e.workspace_id
  left join users actor
    on actor.id = e.user_id
    and actor.organization_id = e.organization_id
    and (actor.org_role in (254, 255)) is not true
    and not exists (
      select from workspace_user w where w.user_id = actor.id and w.workspace_id = e.workspace_id
    )
  cross join lateral (
    select
      coalesce(administrators.users, 0) + coalesce(members.users, 0)
        + case when actor.id is null then 0 else 1 end as viewers
  ) v
  group by e.organization_id, e.day;
comment on view system_event_read_rate_by_day is
  'read rate of all events of a day (UTC), and how soon they were read. '
  'Ask with: where organization_id = ''...'' and day > current_date - 7';
comment on column system_event_read_rate_by_day.viewers is 'sum over the events: how many users see each';
comment on column system_event_read_rate_by_day.readers is 'sum over the events: how many of them have read it';
comment on column system_event_read_rate_by_day.read_rate is 'readers / viewers';
comment on column system_event_read_rate_by_day.half_read is 'events that half of their viewers have read';
comment on column system_event_read_rate_by_day.half_read_after is
  'the median, over those events, of how long that took';

grant select
  on system_event_visible, system_event_unread, system_event_unread_count, system_event_unnoticed,
    system_event_reader, system_event_read_rate, system_event_read_rate_by_day
  to public;
