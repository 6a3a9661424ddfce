-- One row is an event as received once, for every event that ever named one of the wanted users.
with
wanted as (select user_id from wanted_users),
touched as (
    select distinct raw_events.event_id
    from raw_events
    inner join wanted on raw_events.user_id = wanted.user_id
),
final as (
    select raw_events.*
    from raw_events
    inner join touched on raw_events.event_id = touched.event_id
)
select * from final
