-- one row is a user as received once, of the newest $limit received since $since, the oldest first
with newest as (
    select user_id, attributes, ingested_at, batch_id, source_row
    from raw_users
    where ingested_at >= $since
    order by ingested_at desc, batch_id desc, source_row desc
    limit $limit
)

select user_id, attributes, ingested_at
from newest
order by ingested_at, batch_id, source_row
