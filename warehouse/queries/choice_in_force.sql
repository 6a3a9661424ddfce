-- At most one row: the chosen parameters that the version which serves was trained with.
with
last_publication as (
    select version from publications order by published_at desc, publication_id desc limit 1
),
final as (
    select factor_choices.choice, factor_choices.parameters
    from last_publication
    inner join model_versions on last_publication.version = model_versions.version
    inner join factor_choices on model_versions.choice = factor_choices.choice
)
select * from final
