-- one row is an item as received once, of the newest $limit received since $since, the oldest first
with newest as (
    select
        item_id, title, description, categories, attributes, available, updated_at,
        ingested_at, batch_id, source_row
    from raw_items
    where ingested_at >= $since
    order by ingested_at desc, batch_id desc, source_row desc
    limit $limit
)

select item_id, title, description, categories, attributes, available, updated_at, ingested_at
from newest
order by ingested_at, batch_id, source_row
