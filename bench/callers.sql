-- psql: the ids of the first :members users of each organization.
select md5('user ' || o || '/' || u)::uuid::text
from generate_series(1, :organizations) o, generate_series(1, :members) u;
