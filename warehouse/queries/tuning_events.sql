-- One row is an event of a kept interaction; user and item are places in the training's logs, as text, where ids go.
with
kept as (
    select user_id, item_id, user_place, item_place from kept_interactions
),
final as (
    select
        events.event_id,
        kept.user_place as user_id,
        kept.item_place as item_id,
        events.event_type,
        events.occurred_at,
        events.value
    from stg_events as events
    inner join kept on events.user_id = kept.user_id and events.item_id = kept.item_id
    inner join event_types on events.event_type = event_types.name
    where event_types.effect in ('positive', 'negative', 'rating')
    order by events.event_id
)
select * from final
