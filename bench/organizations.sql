-- psql: organizations 1 to :organizations, each with 50 users and 5 workspaces.
-- Ids are texts of 36 characters in no order, as platforms have them. One user in five is an
-- administrator; each user belongs to one workspace.
insert into users (id, organization_id, name, email, org_role)
select
  md5('user ' || o || '/' || u)::uuid::text,
  md5('organization ' || o)::uuid::text,
  'User ' || u,
  'user' || u || '@' || o || '.example',
  case when u % 5 = 1 then 254 else 0 end
from generate_series(1, :organizations) o, generate_series(1, 50) u
order by 1;

insert into workspace_user (workspace_id, user_id)
select md5('workspace ' || o || '/' || u % 5)::uuid::text, md5('user ' || o || '/' || u)::uuid::text
from generate_series(1, :organizations) o, generate_series(1, 50) u;
