-- Makes the service's role, or gives it another password, which the variable ROLE_PASSWORD holds.
-- Run before grants.sql, as somebody who may make roles:
--
--   ROLE_PASSWORD=... psql -v role=systemevent_read -f deploy/role.sql
\getenv password ROLE_PASSWORD
select format('create role %I login', :'role')
where not exists (select from pg_roles where rolname = :'role')
\gexec
alter role :"role" password :'password';
