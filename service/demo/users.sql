-- The people to try the demo as.
select
  u.id,
  u.name,
  initcap(u.organization_id) as organization,
  case u.org_role when 255 then 'owner' when 254 then 'administrator' else 'user' end as role
from users u
order by u.organization_id nulls last, u.org_role desc, u.name
limit 20
