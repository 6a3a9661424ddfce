-- one row: the share of events with an item that is not in the catalog
with events as (
    select item_id
    from stg_events
    where item_id is not null
),

items as (
    select item_id
    from stg_items
)

select coalesce(avg(cast(items.item_id is null as integer)), 0) as unknown_item_share
from events
left join items using (item_id)
