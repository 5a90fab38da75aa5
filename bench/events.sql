-- psql: events 1 to :events of organizations :first to :last.
-- The newest 100 fall into the last 24 hours whatever :events is: more events are a longer history.
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id, json_data)
select
  md5('organization ' || o)::uuid::text,
  e,
  now() - (:events - e) * interval '864 seconds',
  e % 14,
  e % 3,
  'thing-' || e,
  md5('user ' || o || '/' || 1 + (e + 1) % 50)::uuid::text,
  md5('workspace ' || o || '/' || e % 5)::uuid::text,
  '{"name": "thing-' || e || '"}'
from generate_series(:first, :last) o, generate_series(1, :events) e
order by 1, 2;
