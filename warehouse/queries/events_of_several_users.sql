-- One row is an event of fed_events and a user, for events whose rows name several users: a correction moved them.
with
fed as (select distinct event_id from fed_events),
named as (
    select distinct raw_events.event_id, raw_events.user_id
    from raw_events
    inner join fed on raw_events.event_id = fed.event_id
),
final as (
    select event_id, user_id
    from named
    qualify count(*) over (partition by event_id) > 1
    order by event_id, user_id
)
select * from final
