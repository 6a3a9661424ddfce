-- One row: how many rows of raw_events came by the commits after $after, and when the first of them arrived.
select count(*) as n_events, min(ingested_at) as oldest_at from raw_events where snapshot_id > $after
