-- At most one row: the model version that was published last.
with
last_publication as (
    select version from publications order by published_at desc, publication_id desc limit 1
),
final as (
    select model_versions.version, model_versions.inputs_hash
    from model_versions
    inner join last_publication on model_versions.version = last_publication.version
)
select * from final
