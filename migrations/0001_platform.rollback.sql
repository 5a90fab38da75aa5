do $$
declare
  relation text;
begin
  foreach relation in array array['workspace_user', 'system_event_log', 'users'] loop
    if obj_description(to_regclass(relation), 'pg_class') like 'stand-in: %' then
      execute format('drop table %I', relation);
    end if;
  end loop;
end
$$;
