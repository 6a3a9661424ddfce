-- One row is something that came by the commits after $after, up to $to, and that the profile of a user should hold: an
-- event, a request for a refresh, or, with $with_attributes, what they told of themselves (no event_id in these two).
-- Every row carries the snapshot it came with, also when that has expired.
with
events as (
    select user_id, event_id, ingested_at from raw_events where snapshot_id > $after and snapshot_id <= $to
),
requests as (
    select user_id, null::varchar as event_id, requested_at as ingested_at
    from refresh_requests
    where snapshot_id > $after and snapshot_id <= $to
),
told as (
    select user_id, null::varchar as event_id, ingested_at
    from raw_users
    where snapshot_id > $after and snapshot_id <= $to and $with_attributes
),
final as (
    select * from events
    union all
    select * from requests
    union all
    select * from told
)
select * from final
