-- A platform whose tables have other names, another shape, or ids of other types, is served through
-- views. They stand in a schema of their own, so it does not matter that the platform has a table of
-- the same name. This is an example, for a platform with a table `users` whose ids are uuids, and
-- words where we expect numbers: adapt what is right of each `as`, and the indexes.
--
-- Every step; $OWNER is the address of the owner of the platform's tables, $ROLE that of the service's
-- role systemevent_read, which an administrator made:
--
--   psql "$OWNER" -v ON_ERROR_STOP=1 -1 -f platform_views.sql
--   export SYSTEMEVENT_DATABASE_URL="$OWNER?options=-csearch_path%3Dsystemevent"
--   systemevent-read migrate
--   systemevent-read grants systemevent_read | psql "$SYSTEMEVENT_DATABASE_URL"
--   psql "$ROLE" -c 'alter role systemevent_read set search_path = systemevent'
--   SYSTEMEVENT_DATABASE_URL="$ROLE" systemevent-read serve
--
-- `migrate` puts our table beside the views, and says which column is missing or of a wrong type. To
-- change a view: `create or replace view`, or, where its columns change, `drop view ... cascade`, make
-- it anew, then `migrate` and `grants` again. `drop schema systemevent cascade` takes all of it away.
--
-- The service looks users up by id, events by (organization, id) and by (organization, time), members
-- by user: each needs an index on just the expression that the view shows, or every request reads the
-- whole table.
create schema systemevent;

create view systemevent.users as
  select
    u.uuid::text as id,
    u.company::text as organization_id,  -- null: in none
    u.full_name as name,
    u.mail as email,
    -- 0 user, 1 billing, 2 workspaces, 254 administrator, 255 owner; the last two see all events
    (case u.level when 'owner' then 255 when 'admin' then 254 else 0 end)::smallint as org_role
  from public.users u;
create index users_id_text_idx on public.users ((uuid::text));

create view systemevent.system_event_log as
  select
    a.company::text as organization_id,
    a.serial as id,  -- bigint, unique within the organization
    a.happened_at as "timestamp",  -- timestamptz; one without zone is taken for UTC
    -- 0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey, 7 usersettings,
    -- 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, 13 conversation; any other
    -- smallint is shown as its digits
    (array_position('{project,storage,repository,person}'::text[], a.kind) - 1)::smallint as context,
    -- 0 created, 1 updated, 2 deleted
    (case a.action when 'add' then 0 when 'change' then 1 when 'remove' then 2 end)::smallint as event,
    a.subject as context_id,
    a.actor::text as user_id,
    a.workspace::text as workspace_id,  -- null: in none, so only its actor and administrators see it
    a.details::text as json_data
  from public.audit a;
create index audit_id_idx on public.audit ((company::text), serial);
create index audit_time_idx on public.audit ((company::text), happened_at desc, serial desc);

create view systemevent.workspace_user as
  select m.workspace::text as workspace_id, m.account::text as user_id
  from public.member m;
create index member_id_text_idx on public.member ((account::text), (workspace::text));
