-- One row is an event as received once, in a row that names one of the wanted users.
select raw_events.*
from raw_events
inner join wanted_users on raw_events.user_id = wanted_users.user_id
