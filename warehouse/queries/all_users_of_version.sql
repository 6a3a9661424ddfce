-- One row is a user who has an event or attributes, or a profile in the model version $version.
with
users as (
    select user_id from raw_events
    union
    select user_id from raw_users
    union
    select user_id from user_profiles where version = $version
),
final as (select user_id from users order by user_id)
select * from final
