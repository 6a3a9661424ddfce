-- one row: when the newest row of one raw table was received; null if it has none
with received as (
    select 'raw_items' as table_name, ingested_at from raw_items
    union all
    select 'raw_users' as table_name, ingested_at from raw_users
    union all
    select 'raw_events' as table_name, ingested_at from raw_events
)

select max(ingested_at) as ingested_at
from received
where table_name = $table_name
