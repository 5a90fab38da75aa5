-- What a session is: who asks, where names are looked for, and how the database keeps text: only UTF8
-- holds all that tokens and bodies may.
--
-- No parameters. Returns one row (role, schemas, encoding); schemas: those of the search_path that
-- the role may use.
select
  current_user as role,
  array_to_string(current_schemas(false), ', ') as schemas,
  current_setting('server_encoding') as encoding
