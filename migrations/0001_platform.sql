-- The platform's relations: users, system_event_log, workspace_user.
--
-- Each is made only where no relation of that name can be seen, so a platform that already has
-- them keeps its own, and one that calls them something else puts views in their place before it
-- migrates (deploy/platform_views.sql). The comment 'stand-in: ...' marks what this migration made;
-- the rollback drops nothing without that mark.

do $$
begin
  if to_regclass('users') is null then
    create table users (
      id text primary key,
      organization_id text,
      name text not null,
      email text not null,
      org_role smallint not null default 0
    );
    comment on index users_pkey is 'one row a user';
    comment on table users is 'stand-in: the platform''s users; one row a user';
    comment on column users.id is 'user id, as in the token''s user claim';
    comment on column users.organization_id is 'the user''s organization; null: none';
    comment on column users.name is 'shown as userName';
    comment on column users.email is 'shown as userEmail';
    comment on column users.org_role is
      'role in the organization: 0 user, 1 billing, 2 workspaces, 254 administrator, 255 owner';
  end if;

  if to_regclass('system_event_log') is null then
    create table system_event_log (
      organization_id text not null,
      id bigint not null,
      "timestamp" timestamptz not null default now(),
      context smallint not null,
      event smallint not null,
      context_id text not null,
      user_id text not null,
      workspace_id text,
      json_data text,
      -- The organization leads: it is the tenant, every query has it, and it is the distribution
      -- column when one machine is not enough.
      constraint system_event_log_pkey primary key (organization_id, id)
    );
    create index system_event_log_time_idx
      on system_event_log (organization_id, "timestamp" desc, id desc);
    comment on table system_event_log is 'stand-in: the platform''s event log; one row an event';
    comment on column system_event_log.organization_id is 'the organization the event belongs to';
    comment on column system_event_log.id is 'event id, unique within the organization';
    comment on column system_event_log."timestamp" is 'when it happened';
    comment on column system_event_log.context is
      'kind of the thing: 0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey, '
      '7 usersettings, 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, '
      '13 conversation';
    comment on column system_event_log.event is 'what happened to it: 0 created, 1 updated, 2 deleted';
    comment on column system_event_log.context_id is 'id of the thing';
    comment on column system_event_log.user_id is 'who did it';
    comment on column system_event_log.workspace_id is 'the workspace it happened in; null: none';
    comment on column system_event_log.json_data is 'details, as the platform wrote them';
    comment on index system_event_log_pkey is 'one row an event';
    comment on index system_event_log_time_idx is 'the list: a window of time, newest first';
  end if;

  if to_regclass('workspace_user') is null then
    create table workspace_user (
      workspace_id text not null,
      user_id text not null,
      constraint workspace_user_pkey primary key (user_id, workspace_id)
    );
    comment on index workspace_user_pkey is 'one row a member, found by the user';
    comment on table workspace_user is 'stand-in: the platform''s members of workspaces';
    comment on column workspace_user.workspace_id is 'the workspace';
    comment on column workspace_user.user_id is 'a user who belongs to it';
  end if;
end
$$;
