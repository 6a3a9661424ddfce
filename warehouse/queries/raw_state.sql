-- one row is a raw table: how much of it there is; the tables only grow, so the same numbers are the same rows
with counted as (
    select 'raw_items' as table_name, count(*) as n_rows, max(ingested_at) as newest_at from raw_items
    union all
    select 'raw_users' as table_name, count(*) as n_rows, max(ingested_at) as newest_at from raw_users
    union all
    select 'raw_events' as table_name, count(*) as n_rows, max(ingested_at) as newest_at from raw_events
)

select table_name, n_rows, epoch_us(newest_at) as newest_us
from counted
order by table_name
