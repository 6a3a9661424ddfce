-- One row is a user of $user_ids who has an event.
select distinct user_id
from raw_events
where user_id in (select unnest($user_ids))
order by user_id
