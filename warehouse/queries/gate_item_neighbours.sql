-- one row: neighbours of items in the model version $version that stand there twice or are no neighbours, and the share
-- of its liked items that have none
with found as (
    select version, item_id, rank, neighbour_id, strength, n_shared
    from item_neighbours
    where version = $version
),

known as (
    select item_id, n_interactions
    from item_factors
    where version = $version
),

repeated as (
    select 2 * count(*) - count(distinct (item_id, rank)) - count(distinct (item_id, neighbour_id)) as n_repeated
    from found
),

wrong as (
    select count(*) as n_wrong
    from found
    left join known as items using (item_id)
    left join known as neighbours on found.neighbour_id = neighbours.item_id
    where
        items.item_id is null
        or neighbours.item_id is null
        or found.item_id = found.neighbour_id
        or not coalesce(found.strength > 0 and isfinite(found.strength), false)
        or not coalesce(found.rank >= 1 and found.n_shared >= 1, false)
),

covered as (
    select coalesce(avg(cast(item_id not in (select item_id from found) as integer)), 0) as missing_share
    from known
    where n_interactions > 0
)

select repeated.n_repeated, wrong.n_wrong, covered.missing_share
from repeated, wrong, covered
