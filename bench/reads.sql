-- psql: each event of organizations :first to :last is read by one of the 50 users, so that there
-- are as many read rows as events, and 98 in 100 random marks are new.
insert into system_event_read (organization_id, user_id, event_id)
select md5('organization ' || o)::uuid::text, md5('user ' || o || '/' || 1 + e % 50)::uuid::text, e
from generate_series(:first, :last) o, generate_series(1, :events) e
order by 1, 2, 3;
