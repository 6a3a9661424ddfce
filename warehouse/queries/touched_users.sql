-- One row is a user whom the rows of fed_events concern: named there, or in any row of the same events, since a
-- correction may move an event from one user to another.
with
fed as (select distinct event_id from fed_events),
final as (
    select distinct raw_events.user_id
    from raw_events
    inner join fed on raw_events.event_id = fed.event_id
    order by raw_events.user_id
)
select * from final
