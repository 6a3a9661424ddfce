-- One row is a row of raw_events with a text, of those that came by the commits after $after, up to $to.
select
    event_id, user_id, item_id, event_type, occurred_at, value, text, batch_id, source, source_row, ingested_at
from raw_events
where snapshot_id > $after and snapshot_id <= $to and text is not null
