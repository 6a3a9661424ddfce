-- One row is an item of the catalog, by id, with its attributes and categories, and with the embedding of its text under
-- $encoder_id (null without one). arrived_at is when an item came that came after the first training; null before.
with
first_training as (select min(created_at) as trained_at from model_versions),
items as (select item_id, attributes, categories, first_seen_at from stg_items),
texts as (select item_id, content_hash, template_version from int_item_texts),
embeddings as (
    select content_hash, template_version, embedding
    from item_embeddings
    where encoder_id = $encoder_id
),
final as (
    select
        texts.item_id,
        texts.content_hash,
        texts.template_version,
        embeddings.embedding,
        embeddings.embedding is not null as has_text,
        items.attributes,
        items.categories,
        case when items.first_seen_at > first_training.trained_at then items.first_seen_at end as arrived_at
    from texts
    cross join first_training
    left join items on texts.item_id = items.item_id
    left join embeddings
        on texts.content_hash = embeddings.content_hash
        and texts.template_version = embeddings.template_version
    order by texts.item_id
)
select * from final
