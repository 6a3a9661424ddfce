-- One row is a wanted user's profile in the model version $version, by id.
select user_profiles.*
from user_profiles
inner join wanted_users on user_profiles.user_id = wanted_users.user_id
where user_profiles.version = $version
order by user_profiles.user_id
