-- one row is a text that a user wrote
with events as (
    select event_id, user_id, event_type, occurred_at, trim(text) as text
    from stg_events
),

textual_types as (
    select name, weight
    from event_types
    where effect = 'text'
),

final as (
    select
        events.event_id,
        events.user_id,
        events.text,
        sha256(events.text) as content_hash,
        events.occurred_at,
        textual_types.weight
    from events
    inner join textual_types on events.event_type = textual_types.name
    where events.text <> ''
)

select * from final
