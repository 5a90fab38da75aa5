-- What the platform's relations lack for our statements: a relation, a column, or a type of it.
--
-- No parameters. Returns a row (fault, relation_missing) for each, in words: "users.id is uuid, must
-- be text". Nothing is read but the catalog, so it says the same to a role without any grant.
with expected (relation, names, types) as (
  values  -- the first type is what is asked for; the others do as well
    ('users', '{id,organization_id,name,email}'::text[], '{text,character varying}'::text[]),
    ('users', '{org_role}', '{smallint,integer,bigint}'),
    (
      'system_event_log',
      '{organization_id,context_id,user_id,workspace_id}',
      '{text,character varying}'
    ),
    ('system_event_log', '{id}', '{bigint,integer,smallint}'),
    (
      'system_event_log',
      '{timestamp}',
      '{timestamp with time zone,timestamp without time zone}'  -- without: UTC
    ),
    ('system_event_log', '{context,event}', '{smallint,integer}'),
    ('system_event_log', '{json_data}', '{text,character varying,jsonb,json}'),
    ('workspace_user', '{workspace_id,user_id}', '{text,character varying}')
),
found as (
  select
    x.relation,
    wanted.name,
    x.types,
    to_regclass(x.relation) is null as relation_missing,
    format_type(a.atttypid, a.atttypmod) as shown,
    format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null) as type  -- of a domain, what it is made of
  from expected x
  cross join unnest(x.names) as wanted (name)
  left join pg_attribute a
    on a.attrelid = to_regclass(x.relation)
    and a.attname = wanted.name
    and a.attnum > 0
    and not a.attisdropped
  left join pg_type t on t.oid = a.atttypid
)
select distinct
  case
    when f.relation_missing then format('%s is missing', f.relation)
    when f.shown is null then format('%s.%s is missing, must be %s', f.relation, f.name, f.types[1])
    else format('%s.%s is %s, must be %s', f.relation, f.name, f.shown, f.types[1])
  end as fault,
  f.relation_missing
from found f
where f.type is null or f.type <> all (f.types)
order by fault
