-- One row is one of shared_events as received once, in a row that names another user than the wanted ones.
select raw_events.*
from raw_events
semi join shared_events on raw_events.event_id = shared_events.event_id
anti join wanted_users on raw_events.user_id = wanted_users.user_id
