-- One row is an event that a row came to by the commits after $after, up to $to.
select distinct event_id from raw_events where snapshot_id > $after and snapshot_id <= $to
