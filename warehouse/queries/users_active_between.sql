-- One row is a user with an event that occurred from $from_date to $to_date, both days included, in UTC.
select distinct user_id
from raw_events
where cast(occurred_at at time zone 'UTC' as date) between $from_date and $to_date
order by user_id
