-- One row is an item of the model version $version, by id, with the time when it was first received; null for one that left the catalog.
with
factors as (select item_id from item_factors where version = $version),
items as (select item_id, first_seen_at from stg_items),
final as (
    select factors.item_id, items.first_seen_at
    from factors
    left join items on factors.item_id = items.item_id
    order by factors.item_id
)
select * from final
