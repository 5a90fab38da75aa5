CREATE TABLE public.system_event_log (
    organization_id text NOT NULL,
    id bigint NOT NULL,
    "timestamp" timestamp with time zone DEFAULT now() NOT NULL,
    context smallint NOT NULL,
    event smallint NOT NULL,
    context_id text NOT NULL,
    user_id text NOT NULL,
    workspace_id text,
    json_data text
);

COMMENT ON TABLE public.system_event_log IS 'stand-in: the platform''s event log; one row an event';

COMMENT ON COLUMN public.system_event_log.organization_id IS 'the organization the event belongs to';

COMMENT ON COLUMN public.system_event_log.id IS 'event id, unique within the organization';

COMMENT ON COLUMN public.system_event_log."timestamp" IS 'when it happened';

COMMENT ON COLUMN public.system_event_log.context IS 'kind of the thing: 0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey, 7 usersettings, 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, 13 conversation';

COMMENT ON COLUMN public.system_event_log.event IS 'what happened to it: 0 created, 1 updated, 2 deleted';

COMMENT ON COLUMN public.system_event_log.context_id IS 'id of the thing';

COMMENT ON COLUMN public.system_event_log.user_id IS 'who did it';

COMMENT ON COLUMN public.system_event_log.workspace_id IS 'the workspace it happened in; null: none';

COMMENT ON COLUMN public.system_event_log.json_data IS 'details, as the platform wrote them';

CREATE TABLE public.system_event_read (
    organization_id text NOT NULL,
    user_id text NOT NULL,
    event_id bigint NOT NULL,
    read_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE public.system_event_read IS 'read state: a row says that this user has read this event';

COMMENT ON COLUMN public.system_event_read.organization_id IS 'the organization of the event and of its reader';

COMMENT ON COLUMN public.system_event_read.user_id IS 'the reader';

COMMENT ON COLUMN public.system_event_read.event_id IS 'the event, unique within the organization';

COMMENT ON COLUMN public.system_event_read.read_at IS 'when it was first marked; marking again keeps it';

CREATE TABLE public.system_event_read_migration (
    migration_hash character varying(64) NOT NULL,
    migration_id character varying(255),
    applied_at_utc timestamp without time zone
);

COMMENT ON TABLE public.system_event_read_migration IS 'which migrations of systemevent-read are applied (yoyo)';

CREATE TABLE public.users (
    id text NOT NULL,
    organization_id text,
    name text NOT NULL,
    email text NOT NULL,
    org_role smallint DEFAULT 0 NOT NULL
);

COMMENT ON TABLE public.users IS 'stand-in: the platform''s users; one row a user';

COMMENT ON COLUMN public.users.id IS 'user id, as in the token''s user claim';

COMMENT ON COLUMN public.users.organization_id IS 'the user''s organization; null: none';

COMMENT ON COLUMN public.users.name IS 'shown as userName';

COMMENT ON COLUMN public.users.email IS 'shown as userEmail';

COMMENT ON COLUMN public.users.org_role IS 'role in the organization: 0 user, 1 billing, 2 workspaces, 254 administrator, 255 owner';

CREATE TABLE public.workspace_user (
    workspace_id text NOT NULL,
    user_id text NOT NULL
);

COMMENT ON TABLE public.workspace_user IS 'stand-in: the platform''s members of workspaces';

COMMENT ON COLUMN public.workspace_user.workspace_id IS 'the workspace';

COMMENT ON COLUMN public.workspace_user.user_id IS 'a user who belongs to it';

CREATE VIEW public.system_event_visible WITH (security_invoker='true') AS
 SELECT u.id AS viewer_id,
    e.organization_id,
    e.id AS event_id,
    e."timestamp",
    e.context,
    e.event,
    e.context_id,
    e.user_id,
    e.workspace_id,
    e.json_data
   FROM (public.users u
     JOIN public.system_event_log e ON ((e.organization_id = u.organization_id)))
  WHERE ((u.org_role = ANY (ARRAY[254, 255])) OR (e.user_id = u.id) OR (EXISTS ( SELECT
           FROM public.workspace_user w
          WHERE ((w.user_id = u.id) AND (w.workspace_id = e.workspace_id)))));

COMMENT ON VIEW public.system_event_visible IS 'who sees what: the owner and administrators all events of their organization, others their own and those of workspaces they belong to. Ask with: where viewer_id = ''...''';

CREATE VIEW public.system_event_read_rate WITH (security_invoker='true') AS
 SELECT e.organization_id,
    e.id AS event_id,
    e."timestamp",
    s.viewers,
    s.readers,
    round(((s.readers)::numeric / (NULLIF(s.viewers, 0))::numeric), 3) AS read_rate
   FROM (public.system_event_log e
     CROSS JOIN LATERAL ( SELECT count(*) AS viewers,
            count(r.user_id) AS readers
           FROM (public.system_event_visible v
             LEFT JOIN public.system_event_read r ON (((r.organization_id = v.organization_id) AND (r.user_id = v.viewer_id) AND (r.event_id = v.event_id))))
          WHERE ((v.organization_id = e.organization_id) AND (v.event_id = e.id))) s);

COMMENT ON VIEW public.system_event_read_rate IS 'read rate per event: of those who see it, how many have read it. Ask with: where organization_id = ''...'' and event_id = 42';

CREATE VIEW public.system_event_reader WITH (security_invoker='true') AS
 SELECT r.organization_id,
    r.event_id,
    r.user_id,
    u.name,
    u.email,
    r.read_at
   FROM (public.system_event_read r
     LEFT JOIN public.users u ON ((u.id = r.user_id)));

COMMENT ON VIEW public.system_event_reader IS 'who has read an event, and when. Ask with: where organization_id = ''...'' and event_id = 42';

CREATE VIEW public.system_event_unread WITH (security_invoker='true') AS
 SELECT viewer_id AS user_id,
    organization_id,
    event_id,
    "timestamp"
   FROM public.system_event_visible v
  WHERE (NOT (EXISTS ( SELECT
           FROM public.system_event_read r
          WHERE ((r.organization_id = v.organization_id) AND (r.user_id = v.viewer_id) AND (r.event_id = v.event_id)))));

COMMENT ON VIEW public.system_event_unread IS 'what is unread for a user: visible events without a read row. Ask with: where user_id = ''...''';

ALTER TABLE ONLY public.system_event_log
    ADD CONSTRAINT system_event_log_pkey PRIMARY KEY (organization_id, id);

ALTER TABLE ONLY public.system_event_read_migration
    ADD CONSTRAINT system_event_read_migration_pkey PRIMARY KEY (migration_hash);

ALTER TABLE ONLY public.system_event_read
    ADD CONSTRAINT system_event_read_pkey PRIMARY KEY (organization_id, user_id, event_id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.workspace_user
    ADD CONSTRAINT workspace_user_pkey PRIMARY KEY (user_id, workspace_id);

COMMENT ON INDEX public.system_event_log_pkey IS 'one row an event';

CREATE INDEX system_event_log_time_idx ON public.system_event_log USING btree (organization_id, "timestamp" DESC, id DESC);

COMMENT ON INDEX public.system_event_log_time_idx IS 'the list: a window of time, newest first';

COMMENT ON INDEX public.system_event_read_pkey IS 'one row per reader and event';

COMMENT ON INDEX public.users_pkey IS 'one row a user';

COMMENT ON INDEX public.workspace_user_pkey IS 'one row a member, found by the user';

GRANT SELECT ON TABLE public.system_event_read_migration TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_visible TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_read_rate TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_reader TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_unread TO PUBLIC;
