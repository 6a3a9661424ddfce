-- One row is an item of the catalog, by id, with the embedding of its text under $encoder_id (null without one).
with
texts as (select item_id, content_hash, template_version from int_item_texts),
embeddings as (
    select content_hash, template_version, embedding
    from item_embeddings
    where encoder_id = $encoder_id
),
final as (
    select texts.item_id, texts.content_hash, texts.template_version, embeddings.embedding
    from texts
    left join embeddings
        on texts.content_hash = embeddings.content_hash
        and texts.template_version = embeddings.template_version
    order by texts.item_id
)
select * from final
