-- One row is one of $user_ids whose profile in the model version $version is true for a later snapshot than $snapshot.
with
wanted as (select unnest($user_ids) as user_id),
final as (
    select user_profiles.user_id
    from user_profiles
    inner join wanted on user_profiles.user_id = wanted.user_id
    where user_profiles.version = $version and user_profiles.as_of_snapshot > $snapshot
)
select * from final
