-- What the service's role needs, and all it needs. Run as the owner of the tables, after `migrate`:
--
--   psql -v role=systemevent_read -f deploy/grants.sql
--
-- The role must exist (create role systemevent_read login); it owns nothing and creates nothing.
-- In a schema other than public it needs usage on that schema as well.
grant select on users, system_event_log, workspace_user to :"role";
grant select, insert, delete on system_event_read to :"role";
