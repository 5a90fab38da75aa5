drop view if exists
  system_event_read_rate_by_day, system_event_read_rate, system_event_reader,
  system_event_unnoticed, system_event_unread_count, system_event_unread, system_event_visible;
