-- A platform whose tables have other names, or ids of other types, is served through views. This is
-- an example, for a platform with uuid user and organization ids; make it before `migrate`, in the
-- schema that the service finds first (search_path), and adapt the right-hand sides.
--
-- The service looks users up by id and events by (organization, id): both need an index on just the
-- expression that the view shows, or every request reads the whole table.
create view users as
  select
    account.uuid::text as id,
    account.company::text as organization_id,
    account.full_name as name,
    account.mail as email,
    (case account.level when 'owner' then 255 when 'admin' then 254 else 0 end)::smallint as org_role
  from account;
create index account_id_text_idx on account ((uuid::text));

create view system_event_log as
  select
    audit.company::text as organization_id,
    audit.serial as id,
    audit.happened_at as "timestamp",
    audit.kind as context,
    audit.action as event,
    audit.subject as context_id,
    audit.actor::text as user_id,
    audit.workspace::text as workspace_id,
    audit.details::text as json_data
  from audit;
create index audit_id_idx on audit ((company::text), serial);
create index audit_time_idx on audit ((company::text), happened_at desc, serial desc);

create view workspace_user as
  select member.workspace::text as workspace_id, member.account::text as user_id
  from member;
create index member_id_text_idx on member ((account::text), (workspace::text));
