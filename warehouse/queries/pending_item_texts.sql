-- One row is an item text without an embedding under the encoder $encoder_id, the longest first, at most $most.
-- n_pending counts all of them; the content hashes of $skipped are left out.
with
texts as (
    select item_id, text, content_hash, template_version
    from int_item_texts
    where trim(text) <> '' and not list_contains(cast($skipped as varchar[]), content_hash)
),
known as (select content_hash, template_version from item_embeddings where encoder_id = $encoder_id),
final as (
    select
        texts.content_hash,
        texts.template_version,
        min(texts.text) as text,
        min(texts.item_id) as used_by,
        count(*) over () as n_pending
    from texts
    anti join known
        on texts.content_hash = known.content_hash
        and texts.template_version = known.template_version
    group by texts.content_hash, texts.template_version
    order by length(min(texts.text)) desc, texts.content_hash
    limit $most
)
select * from final
