-- Citus: distributes the tables over its nodes, and sets what the service's role needs there. Run with
-- psql on the coordinator, as the owner of the tables and somebody who may alter the role, with the
-- role's name (deploy/role.sql makes it, on every node):
--
--   psql "$SYSTEMEVENT_DATABASE_URL" -v role=systemevent_read -f deploy/citus.sql
--
-- Run it after `migrate`; where the platform's tables are there before, it may be run before as well,
-- and then again: what is distributed already is passed over. Views are not distributed, so where the
-- platform's relations are views, distribute the tables below them in the same way.
--
-- Seen to work on Citus 13.2 with PostgreSQL 15.
\set ON_ERROR_STOP on

-- Small, and joined with everything: a copy on every node.
select format('select create_reference_table(%L)', wanted.name)
from unnest(array['users', 'workspace_user']) with ordinality as wanted (name, number)
join pg_class c on c.oid = to_regclass(wanted.name) and c.relkind in ('r', 'p')
where not exists (select from pg_dist_partition p where p.logicalrelid = c.oid)
order by wanted.number
\gexec

-- By organization, which is in every key and asked for in every statement. Of one organization, the
-- rows of both are in shards that are always on the same node, so that they are joined there.
select format('select create_distributed_table(%L, %L)', 'system_event_log', 'organization_id')
from pg_class c
where c.oid = to_regclass('system_event_log') and c.relkind in ('r', 'p')
  and not exists (select from pg_dist_partition p where p.logicalrelid = c.oid)
\gexec
select format(
  'select create_distributed_table(%L, %L, colocate_with => %L)',
  'system_event_read', 'organization_id', 'system_event_log'
)
from pg_class c
where c.oid = to_regclass('system_event_read')
  and not exists (select from pg_dist_partition p where p.logicalrelid = c.oid)
\gexec

-- A statement's plan is made on the nodes, in sessions that do not have the service's own settings, so
-- these are the role's. Just-in-time compilation takes longer there than the statement.
alter role :"role" set jit = off;
-- Where catalog queries hide shards, those that a driver makes to look types up take seconds.
alter role :"role" set citus.override_table_visibility = off;
-- A batch of marks touches many shards with few rows each: one connection to a node does them one
-- after the other; to open one for each shard takes longer.
alter role :"role" set citus.multi_shard_modify_mode = 'sequential';
-- Without it a statement waits there for one person's locked row until its time limit, and everybody
-- in it; a mark-all is then answered 503 long before its deadline.
alter role :"role" set lock_timeout = '50ms';

-- Citus brings these to the nodes only where it knows the role: one that was made in this database after
-- Citus was, or had its grants before the tables were distributed. For any other it is done here; a node
-- that refuses is shown, with its reason.
select node.nodename, node.nodeport, node.result
from pg_roles r, unnest(r.rolconfig) setting, lateral run_command_on_workers(
  format('alter role %I set %s = %L', r.rolname, split_part(setting, '=', 1), split_part(setting, '=', 2))
) node
where r.rolname = :'role'
  and setting ~ '^(jit|citus.override_table_visibility|citus.multi_shard_modify_mode|lock_timeout)='
  and not exists (
    select from pg_dist_object o where o.classid = 'pg_authid'::regclass and o.objid = r.oid
  )
  and not node.success;
