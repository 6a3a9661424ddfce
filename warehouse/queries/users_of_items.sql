-- One row is a user who has an event with one of $item_ids.
select distinct user_id
from raw_events
where item_id in (select unnest(cast($item_ids as varchar[])))
order by user_id
