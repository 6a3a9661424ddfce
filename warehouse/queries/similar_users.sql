-- One row is one of the $k users of the model version $version who are most like the user $user_id: the cosine of their
-- factors, or of their texts where $by says so.
with
profiles as (
    select
        user_id,
        case when $by = 'text' then text_embedding else factors end as vector
    from user_profiles
    where version = $version
),
asked as (select vector from profiles where user_id = $user_id),
final as (
    select
        profiles.user_id,
        cast(list_cosine_similarity(profiles.vector, asked.vector) as double) as similarity
    from profiles
    cross join asked
    where profiles.user_id <> $user_id and list_inner_product(profiles.vector, profiles.vector) > 0
    order by similarity desc, profiles.user_id
    limit $k
)
select * from final order by similarity desc, user_id
