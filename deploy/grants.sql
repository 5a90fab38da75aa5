-- What the service's role needs, and all it needs. Run as the owner of the tables, after `migrate`,
-- with psql:
--
--   systemevent-read grants systemevent_read | psql "$SYSTEMEVENT_DATABASE_URL"
--
-- which is this file and the role's name; or: psql -v role=systemevent_read -f deploy/grants.sql
--
-- The role must exist (create role systemevent_read login password '...', by an administrator); it
-- owns nothing and creates nothing.
\set ON_ERROR_STOP on
grant select on users, system_event_log, workspace_user to :"role";
grant select, insert, delete on system_event_read to :"role";

-- Schemas other than public are closed at first.
select distinct format('grant usage on schema %I to %I', n.nspname, :'role')
from unnest(array['users', 'system_event_log', 'workspace_user', 'system_event_read']) as ours (name)
join pg_class c on c.oid = to_regclass(ours.name)
join pg_namespace n on n.oid = c.relnamespace
where not has_schema_privilege(:'role', n.oid, 'usage')
\gexec
