-- One row is an item of stg_items, by id, beside what the model version $version holds of it: held_hash is null where it
-- lacks the item, is_added says that nearline added it. is_embedded: the text it has now is, as the version needs it.
with
versions as (select encoder_id, template_version from model_versions where version = $version),
items as (select item_id, title, categories, attributes, available, first_seen_at from stg_items),
texts as (select item_id, text, content_hash, template_version from int_item_texts),
held as (select item_id, content_hash, added_at from item_factors where version = $version),
embedded as (
    select item_embeddings.content_hash, item_embeddings.template_version
    from item_embeddings
    inner join versions
        on item_embeddings.encoder_id = versions.encoder_id
        and item_embeddings.template_version = versions.template_version
),
final as (
    select
        items.item_id,
        items.title,
        items.categories,
        items.attributes,
        items.available,
        items.first_seen_at,
        texts.text,
        texts.content_hash,
        texts.template_version,
        held.content_hash as held_hash,
        held.added_at is not null as is_added,
        embedded.content_hash is not null as is_embedded
    from items
    inner join texts on items.item_id = texts.item_id
    left join held on items.item_id = held.item_id
    left join embedded
        on texts.content_hash = embedded.content_hash
        and texts.template_version = embedded.template_version
    order by items.item_id
)
select * from final
