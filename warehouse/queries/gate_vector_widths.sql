-- one row: vectors of the model version $version that have another width than it
with versions as (
    select version, text_width, n_factors
    from model_versions
    where version = $version
),

checked as (
    select len(factors) is distinct from n_factors as is_wrong
    from item_factors
    inner join versions using (version)
    union all
    select len(factors) is distinct from n_factors as is_wrong
    from user_factors
    inner join versions using (version)
    union all
    select len(factors) is distinct from n_factors or len(text_embedding) is distinct from text_width as is_wrong
    from user_profiles
    inner join versions using (version)
)

select count(*) filter (where is_wrong) as n_wrong_width
from checked
