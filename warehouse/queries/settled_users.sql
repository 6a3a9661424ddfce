-- One row is one of fed_users whose profile in the model version $version holds all that the feed says of them.
select fed_users.user_id
from fed_users
inner join user_profiles on fed_users.user_id = user_profiles.user_id
where user_profiles.version = $version and user_profiles.as_of_snapshot >= fed_users.changed_at
