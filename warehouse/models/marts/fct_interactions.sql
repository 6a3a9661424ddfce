-- one row is a user and an item they met
with events as (
    select event_id, user_id, item_id, event_type, occurred_at, value
    from stg_events
),

items as (
    select item_id
    from stg_items
),

types as (
    select name, effect, weight, threshold, dislike_below
    from event_types
    where effect in ('positive', 'negative', 'rating')
),

typed as (
    select
        events.event_id,
        events.user_id,
        events.item_id,
        events.occurred_at,
        events.value,
        types.effect,
        types.weight,
        types.threshold,
        types.dislike_below
    from events
    inner join types on events.event_type = types.name
    inner join items on events.item_id = items.item_id
),

acts as (
    select
        event_id,
        user_id,
        item_id,
        occurred_at,
        case effect when 'positive' then weight else -weight end as signal
    from typed
    where effect <> 'rating'
),

-- of a user's ratings of an item only the newest counts: a rating is a statement, it does not add up
ratings as (
    select
        event_id,
        user_id,
        item_id,
        occurred_at,
        case when value >= threshold then weight when value <= dislike_below then -weight else 0 end as signal
    from typed
    where effect = 'rating'
    qualify row_number() over (partition by user_id, item_id order by occurred_at desc, event_id desc) = 1
),

counting as (
    select event_id, user_id, item_id, occurred_at, signal from acts
    union all
    select event_id, user_id, item_id, occurred_at, signal from ratings
),

-- age is counted back from the user's newest event here, never from now: a re-run changes nothing
aged as (
    select
        event_id,
        user_id,
        item_id,
        occurred_at,
        signal,
        date_diff('second', occurred_at, max(occurred_at) over (partition by user_id)) / 86400.0 as age_days
    from counting
),

decayed as (
    select
        event_id,
        user_id,
        item_id,
        occurred_at,
        cast(signal * greatest(power(0.5, age_days / $half_life_days), 1e-6) as decimal(18, 9)) as signal
    from aged
),

-- the newest event that is not neutral decides between liked and disliked; decimals add up alike in any order
summed as (
    select
        user_id,
        item_id,
        max_by(sign(signal), (occurred_at, event_id)) filter (where signal <> 0) as direction,
        sum(signal) filter (where signal > 0) as liked,
        sum(signal) filter (where signal < 0) as disliked,
        count(*) as n_events,
        min(occurred_at) as first_at,
        max(occurred_at) as last_at
    from decayed
    group by user_id, item_id
),

final as (
    select
        user_id,
        item_id,
        cast(case direction when 1 then liked when -1 then disliked else 0 end as double) as weight,
        n_events,
        first_at,
        last_at
    from summed
)

select * from final
