-- One row is an event as received once, for every event that ever named one of the wanted users; in one statement, since
-- planning each costs more than reading a small table, and the last part is not read where no event is shared.
with
wanted as (select user_id from wanted_users),
own as materialized (
    select
        event_id, user_id, item_id, event_type, occurred_at, value, text, batch_id, source_row, ingested_at
    from raw_events
    semi join wanted on raw_events.user_id = wanted.user_id
),
shared as materialized (
    select distinct raw_events.event_id
    from raw_events
    semi join own on raw_events.event_id = own.event_id
    anti join wanted on raw_events.user_id = wanted.user_id
),
of_others as (
    select
        event_id, user_id, item_id, event_type, occurred_at, value, text, batch_id, source_row, ingested_at
    from raw_events
    semi join shared on raw_events.event_id = shared.event_id
    anti join wanted on raw_events.user_id = wanted.user_id
),
final as (
    select * from own
    union all
    select * from of_others
)
select * from final
