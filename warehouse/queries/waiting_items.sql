-- One row is an item of the catalog that the model version $version lacks, or that was added to it with another text
-- than the one it has now, which is embedded: at most $most, by id. n_waiting counts all of them.
with
versions as (select encoder_id, template_version from model_versions where version = $version),
held as (select item_id, content_hash, added_at from item_factors where version = $version),
texts as (select item_id, content_hash, template_version from int_item_texts),
embedded as (
    select item_embeddings.content_hash
    from item_embeddings
    inner join versions
        on item_embeddings.encoder_id = versions.encoder_id
        and item_embeddings.template_version = versions.template_version
),
final as (
    select texts.item_id, count(*) over () as n_waiting
    from texts
    left join held on texts.item_id = held.item_id
    where
        held.item_id is null
        or (
            held.added_at is not null
            and held.content_hash <> texts.content_hash
            and texts.content_hash in (select content_hash from embedded)
        )
    order by texts.item_id
    limit $most
)
select * from final
