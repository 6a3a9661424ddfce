-- one row: the share of the catalog that the model version $version does not hold
with items as (
    select item_id
    from stg_items
),

known as (
    select item_id
    from item_factors
    where version = $version
)

select coalesce(avg(cast(known.item_id is null as integer)), 0) as missing_share
from items
left join known using (item_id)
