-- One row is an item of the model version $version, by id; embedding is null where the item has no text. is_added says
-- that nearline added it after the training.
with
versions as (select version, encoder_id, template_version from model_versions),
factors as (
    select version, item_id, content_hash, factors, prior, n_interactions, exposure, added_at from item_factors
),
embeddings as (select content_hash, encoder_id, template_version, embedding from item_embeddings),
final as (
    select
        factors.item_id,
        factors.content_hash,
        factors.factors,
        factors.prior,
        factors.n_interactions,
        coalesce(factors.exposure, 1) as exposure,
        factors.added_at is not null as is_added,
        embeddings.embedding
    from factors
    inner join versions on factors.version = versions.version
    left join embeddings
        on factors.content_hash = embeddings.content_hash
        and versions.encoder_id = embeddings.encoder_id
        and versions.template_version = embeddings.template_version
    where factors.version = $version
    order by factors.item_id
)
select * from final
