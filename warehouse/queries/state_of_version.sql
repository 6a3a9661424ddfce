-- One row: the model version $version, and a number that changes with its items and with which of them have a text.
with
items as (
    select
        count(*) as n_items,
        bit_xor(hash(item_id, content_hash, factors, prior, n_interactions, exposure, added_at)) as items_hash
    from item_factors
    where version = $version
),
embedded as (
    select count(distinct item_factors.content_hash) as n_embedded
    from item_factors
    semi join item_embeddings on item_factors.content_hash = item_embeddings.content_hash
    where item_factors.version = $version
),
final as (
    select
        hash(model_versions.created_at, model_versions.recipe, model_versions.fusion, model_versions.text_map)
            as version_hash,
        items.n_items,
        items.items_hash,
        embedded.n_embedded
    from items
    cross join embedded
    left join model_versions on model_versions.version = $version
)
select * from final
