-- Looks at the read rows behind a key, in the order of the key, and finds those that nobody needs.
--
-- $1 text    organization \
-- $2 text    user          > of the last row that was looked at; at first '', '' and the least bigint
-- $3 bigint  event        /
-- $4 bigint  how many rows to look at, at most
-- $5 integer days; events that are older count as well; null: only events that are gone
--
-- Returns no row where nothing is behind the key. Else a row (organization_id, user_id, event_id,
-- number, reason) for each that is found, and for the last one looked at: number counts the rows
-- looked at; reason is 'gone', 'old' or, where the row is to stay, null. An event without a time is
-- never old.
--
-- Takes no locks. A row that is found stays so: who marks needs an event that is there.
--
-- A subselect in parentheses is never turned into a join, so each event is looked up by its whole
-- key, however many rows of either table there are; the time is compared outside of what is looked
-- for, so that no index on time seems to help.
with looked as materialized (
  select r.organization_id, r.user_id, r.event_id
  from system_event_read r
  where (r.organization_id, r.user_id, r.event_id) > ($1::text, $2::text, $3::bigint)
  order by r.organization_id, r.user_id, r.event_id
  limit $4::bigint
),
judged as (
  select
    l.organization_id,
    l.user_id,
    l.event_id,
    row_number() over (order by l.organization_id, l.user_id, l.event_id) as number,
    coalesce((
      select case when e."timestamp" < now() - make_interval(days => $5::integer) then 'old' else '' end
      from system_event_log e
      where e.organization_id = l.organization_id and e.id = l.event_id
      limit 1
    ), 'gone') as reason
  from looked l
)
select j.organization_id, j.user_id, j.event_id, j.number, nullif(j.reason, '') as reason
from judged j
where j.reason <> '' or j.number = (select count(*) from looked)
order by j.number
