drop view system_event_read_rate;
drop view system_event_reader;
drop view system_event_unread;
drop view system_event_visible;
