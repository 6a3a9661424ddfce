-- one row: the share of users of the model version $version without a slate
with users as (
    select user_id
    from user_profiles
    where version = $version
),

served as (
    select distinct user_id
    from mart_recommendations
    where version = $version
)

select coalesce(avg(cast(served.user_id is null as integer)), 0) as missing_share
from users
left join served using (user_id)
