-- one row is an event as received once, of the newest $limit received since $since, the oldest first
with newest as (
    select event_id, user_id, item_id, event_type, occurred_at, value, text, ingested_at, batch_id, source_row
    from raw_events
    where ingested_at >= $since
    order by ingested_at desc, batch_id desc, source_row desc
    limit $limit
)

select event_id, user_id, item_id, event_type, occurred_at, value, text, ingested_at
from newest
order by ingested_at, batch_id, source_row
