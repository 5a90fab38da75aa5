-- Who has read which event. The one table that this service writes.
--
-- * The key is the row. No surrogate id: a sequence burns a value on every conflict.
-- * The organization leads the key: tenant, and distribution column.
-- * No foreign keys into the platform's tables: each insert would take a share lock on the
--   platform's rows, and an event that everyone reads turns into a MultiXact storm. A row whose
--   event the platform deletes is inert: every query starts from the event.

create table system_event_read (
  organization_id text not null,
  user_id text not null,
  event_id bigint not null,
  read_at timestamptz not null default now(),
  constraint system_event_read_pkey primary key (organization_id, user_id, event_id)
);

comment on table system_event_read is 'read state: a row says that this user has read this event';
comment on column system_event_read.organization_id is 'the organization of the event and of its reader';
comment on column system_event_read.user_id is 'the reader';
comment on column system_event_read.event_id is 'the event, unique within the organization';
comment on column system_event_read.read_at is 'when it was first marked; marking again keeps it';
comment on index system_event_read_pkey is 'one row per reader and event';

-- `serve` compares what is applied with the files it knows, under a role that owns nothing.
grant select on system_event_read_migration to public;
comment on table system_event_read_migration is 'which migrations of systemevent-read are applied (yoyo)';
