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

CREATE VIEW public.system_event_read_rate WITH (security_invoker='true') AS
 SELECT e.organization_id,
    e.id AS event_id,
    e."timestamp",
    s.viewers,
    s.readers,
    round(((s.readers)::numeric / (NULLIF(s.viewers, 0))::numeric), 3) AS read_rate,
    (s.half_read_at - e."timestamp") AS half_read_after
   FROM (public.system_event_log e
     CROSS JOIN LATERAL ( SELECT count(*) AS viewers,
            count(r.user_id) AS readers,
            (array_agg(r.read_at ORDER BY r.read_at))[(((count(*) + 1) / 2))::integer] AS half_read_at
           FROM (public.users u
             LEFT JOIN public.system_event_read r ON (((r.organization_id = e.organization_id) AND (r.user_id = u.id) AND (r.event_id = e.id))))
          WHERE ((u.organization_id = e.organization_id) AND ((u.org_role = ANY (ARRAY[254, 255])) OR (e.user_id = u.id) OR (EXISTS ( SELECT
                   FROM public.workspace_user w
                  WHERE ((w.user_id = u.id) AND (w.workspace_id = e.workspace_id))))))) s);

COMMENT ON VIEW public.system_event_read_rate IS 'read rate per event: of those who see it, how many have read it, and how soon. Ask with: where organization_id = ''...'' and event_id = 42, or: order by "timestamp" desc limit 5';

COMMENT ON COLUMN public.system_event_read_rate.viewers IS 'how many users see it';

COMMENT ON COLUMN public.system_event_read_rate.readers IS 'how many of them have read it';

COMMENT ON COLUMN public.system_event_read_rate.read_rate IS 'readers / viewers; null where nobody sees it';

COMMENT ON COLUMN public.system_event_read_rate.half_read_after IS 'how long until half of its viewers had read it; null where fewer have';

CREATE VIEW public.system_event_read_rate_by_day WITH (security_invoker='true') AS
 SELECT e.organization_id,
    e.day,
    count(*) AS events,
    (sum(v.viewers))::bigint AS viewers,
    (sum(e.readers))::bigint AS readers,
    round((sum(e.readers) / NULLIF(sum(v.viewers), (0)::numeric)), 3) AS read_rate,
    count(e.read_at[(((v.viewers + 1) / 2))::integer]) AS half_read,
    percentile_disc((0.5)::double precision) WITHIN GROUP (ORDER BY (e.read_at[(((v.viewers + 1) / 2))::integer] - e."timestamp")) AS half_read_after
   FROM ((((( SELECT e_1.organization_id,
            ((e_1."timestamp" AT TIME ZONE 'UTC'::text))::date AS day,
            e_1.id,
            e_1."timestamp",
            e_1.user_id,
            e_1.workspace_id,
            count(r.user_id) AS readers,
            array_agg(r.read_at ORDER BY r.read_at) AS read_at
           FROM (public.system_event_log e_1
             LEFT JOIN (public.system_event_read r
             JOIN public.users u ON ((u.id = r.user_id))) ON (((r.organization_id = e_1.organization_id) AND (r.event_id = e_1.id) AND (u.organization_id = e_1.organization_id) AND ((u.org_role = ANY (ARRAY[254, 255])) OR (e_1.user_id = u.id) OR (EXISTS ( SELECT
                   FROM public.workspace_user w
                  WHERE ((w.user_id = u.id) AND (w.workspace_id = e_1.workspace_id))))))))
          GROUP BY e_1.organization_id, (((e_1."timestamp" AT TIME ZONE 'UTC'::text))::date), e_1.id, e_1."timestamp", e_1.user_id, e_1.workspace_id) e
     LEFT JOIN ( SELECT u.organization_id,
            count(*) AS users
           FROM public.users u
          WHERE (u.org_role = ANY (ARRAY[254, 255]))
          GROUP BY u.organization_id) administrators ON ((administrators.organization_id = e.organization_id)))
     LEFT JOIN ( SELECT u.organization_id,
            w.workspace_id,
            count(DISTINCT u.id) AS users
           FROM (public.workspace_user w
             JOIN public.users u ON ((u.id = w.user_id)))
          WHERE ((u.org_role = ANY (ARRAY[254, 255])) IS NOT TRUE)
          GROUP BY u.organization_id, w.workspace_id) members ON (((members.organization_id = e.organization_id) AND (members.workspace_id = e.workspace_id))))
     LEFT JOIN public.users actor ON (((actor.id = e.user_id) AND (actor.organization_id = e.organization_id) AND ((actor.org_role = ANY (ARRAY[254, 255])) IS NOT TRUE) AND (NOT (EXISTS ( SELECT
           FROM public.workspace_user w
          WHERE ((w.user_id = actor.id) AND (w.workspace_id = e.workspace_id))))))))
     CROSS JOIN LATERAL ( SELECT ((COALESCE(administrators.users, (0)::bigint) + COALESCE(members.users, (0)::bigint)) +
                CASE
                    WHEN (actor.id IS NULL) THEN 0
                    ELSE 1
                END) AS viewers) v)
  GROUP BY e.organization_id, e.day;

COMMENT ON VIEW public.system_event_read_rate_by_day IS 'read rate of all events of a day (UTC), and how soon they were read. Ask with: where organization_id = ''...'' and day > current_date - 7';

COMMENT ON COLUMN public.system_event_read_rate_by_day.viewers IS 'sum over the events: how many users see each';

COMMENT ON COLUMN public.system_event_read_rate_by_day.readers IS 'sum over the events: how many of them have read it';

COMMENT ON COLUMN public.system_event_read_rate_by_day.read_rate IS 'readers / viewers';

COMMENT ON COLUMN public.system_event_read_rate_by_day.half_read IS 'events that half of their viewers have read';

COMMENT ON COLUMN public.system_event_read_rate_by_day.half_read_after IS 'the median, over those events, of how long that took';

CREATE VIEW public.system_event_reader WITH (security_invoker='true') AS
 SELECT e.organization_id,
    e.id AS event_id,
    u.id AS user_id,
    u.name,
    u.email,
    r.read_at
   FROM ((public.system_event_log e
     JOIN public.users u ON ((u.organization_id = e.organization_id)))
     JOIN public.system_event_read r ON (((r.organization_id = e.organization_id) AND (r.user_id = u.id) AND (r.event_id = e.id))));

COMMENT ON VIEW public.system_event_reader IS 'who has read an event, and when; of events that are still there, and users who are still in the organization. Ask with: where organization_id = ''...'' and event_id = 42';

CREATE VIEW public.system_event_unnoticed WITH (security_invoker='true') AS
 SELECT organization_id,
    id AS event_id,
    "timestamp",
    context,
    event,
    context_id,
    user_id
   FROM public.system_event_log e
  WHERE (NOT (EXISTS ( SELECT
           FROM public.system_event_read r
          WHERE ((r.organization_id = e.organization_id) AND (r.event_id = e.id)))));

COMMENT ON VIEW public.system_event_unnoticed IS 'what nobody has read. Ask with: where organization_id = ''...'' order by "timestamp" desc limit 20';

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

CREATE VIEW public.system_event_unread_count WITH (security_invoker='true') AS
 SELECT organization_id,
    user_id,
    (sum(events))::bigint AS unread
   FROM ( SELECT u.organization_id,
            u.id AS user_id,
            0 AS events
           FROM public.users u
          WHERE (u.organization_id IS NOT NULL)
        UNION ALL
         SELECT u.organization_id,
            u.id,
            e.events
           FROM (public.users u
             JOIN ( SELECT system_event_log.organization_id,
                    count(*) AS events
                   FROM public.system_event_log
                  GROUP BY system_event_log.organization_id) e ON ((e.organization_id = u.organization_id)))
          WHERE (u.org_role = ANY (ARRAY[254, 255]))
        UNION ALL
         SELECT e.organization_id,
            e.user_id,
            count(*) AS count
           FROM (public.system_event_log e
             JOIN public.users u ON (((u.id = e.user_id) AND (u.organization_id = e.organization_id))))
          WHERE ((u.org_role = ANY (ARRAY[254, 255])) IS NOT TRUE)
          GROUP BY e.organization_id, e.user_id
        UNION ALL
         SELECT u.organization_id,
            u.id,
            e.events
           FROM ((( SELECT DISTINCT workspace_user.user_id,
                    workspace_user.workspace_id
                   FROM public.workspace_user) w
             JOIN public.users u ON ((u.id = w.user_id)))
             JOIN ( SELECT system_event_log.organization_id,
                    system_event_log.workspace_id,
                    system_event_log.user_id,
                    count(*) AS events
                   FROM public.system_event_log
                  GROUP BY system_event_log.organization_id, system_event_log.workspace_id, system_event_log.user_id) e ON (((e.organization_id = u.organization_id) AND (e.workspace_id = w.workspace_id))))
          WHERE (((u.org_role = ANY (ARRAY[254, 255])) IS NOT TRUE) AND (e.user_id IS DISTINCT FROM u.id))
        UNION ALL
         SELECT r.organization_id,
            r.user_id,
            (- count(*))
           FROM ((public.system_event_read r
             JOIN public.users u ON (((u.id = r.user_id) AND (u.organization_id = r.organization_id))))
             JOIN public.system_event_log e ON (((e.organization_id = r.organization_id) AND (e.id = r.event_id))))
          WHERE ((u.org_role = ANY (ARRAY[254, 255])) OR (e.user_id = u.id) OR (EXISTS ( SELECT
                   FROM public.workspace_user w
                  WHERE ((w.user_id = u.id) AND (w.workspace_id = e.workspace_id)))))
          GROUP BY r.organization_id, r.user_id) part
  GROUP BY organization_id, user_id;

COMMENT ON VIEW public.system_event_unread_count IS 'how many events are unread, for each user of an organization. Ask with: where organization_id = ''...'' order by unread desc';

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

GRANT SELECT ON TABLE public.system_event_read_rate TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_read_rate_by_day TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_reader TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_unnoticed TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_visible TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_unread TO PUBLIC;

GRANT SELECT ON TABLE public.system_event_unread_count TO PUBLIC;
