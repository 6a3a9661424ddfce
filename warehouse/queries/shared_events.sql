-- One row is an event of own_events that some row names under another user than the wanted ones.
select distinct raw_events.event_id
from raw_events
semi join own_events on raw_events.event_id = own_events.event_id
anti join wanted_users on raw_events.user_id = wanted_users.user_id
