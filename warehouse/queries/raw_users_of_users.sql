-- One row is a user as received once, for the wanted users.
select raw_users.*
from raw_users
inner join wanted_users on raw_users.user_id = wanted_users.user_id
