-- One row is a table that holds vectors of the model version $version: how many are wrong.
with
versions as (
    select version, encoder_id, template_version, text_width, n_factors from model_versions where version = $version
),
item_vectors as (
    select 'item_factors' as table_name, item_factors.factors as vector, versions.n_factors as width
    from item_factors
    inner join versions on item_factors.version = versions.version
),
text_vectors as (
    select 'item_embeddings' as table_name, item_embeddings.embedding as vector, versions.text_width as width
    from item_factors
    inner join versions on item_factors.version = versions.version
    inner join item_embeddings
        on item_factors.content_hash = item_embeddings.content_hash
        and versions.encoder_id = item_embeddings.encoder_id
        and versions.template_version = item_embeddings.template_version
),
user_vectors as (
    select
        'user_profiles' as table_name,
        unnest([user_profiles.text_embedding, user_profiles.factors]) as vector,
        unnest([versions.text_width, versions.n_factors]) as width
    from user_profiles
    inner join versions on user_profiles.version = versions.version
),
vectors as (
    select * from item_vectors
    union all
    select * from text_vectors
    union all
    select * from user_vectors
),
final as (
    select
        table_name,
        count(*) filter (where len(vector) is distinct from width) as n_wrong_width,
        count(*) filter (where not isfinite(list_sum(vector))) as n_not_finite
    from vectors
    group by table_name
    order by table_name
)
select * from final
