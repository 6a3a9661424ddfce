-- One row is an item of the model version $version, by id, as it is shown now; an item that left the catalog is not available.
with
factors as (select item_id from item_factors where version = $version),
items as (select item_id, title, categories, available, attributes from stg_items),
final as (
    select
        factors.item_id,
        coalesce(items.title, '') as title,
        coalesce(items.categories, []) as categories,
        coalesce(items.available, false) as available,
        items.attributes
    from factors
    left join items on factors.item_id = items.item_id
    order by factors.item_id
)
select * from final
