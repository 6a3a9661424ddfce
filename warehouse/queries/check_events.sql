-- one row is a row of source_rows as an event: typed, with the reason why it is refused (null: it is good)
with rows as (
    select source_row, event_id, user_id, item_id, event_type, occurred_at, value, text
    from source_rows
),

types as (
    select name, effect
    from event_types
),

parsed as (
    select
        rows.source_row,
        case when trim(rows.event_id) <> '' then rows.event_id end as event_id,
        case when trim(rows.user_id) <> '' then rows.user_id end as user_id,
        case when trim(rows.item_id) <> '' then rows.item_id end as item_id,
        trim(rows.event_type) as event_type,
        types.effect,
        -- a bare number counts seconds since 1970; if it is too large for that: milli-, micro- or nanoseconds.
        -- One too small (before 1973) is none: 20260131 is a date without its dashes, and 0 a time that is missing
        case
            when try_cast(rows.occurred_at as double) is null then try_cast(trim(rows.occurred_at) as timestamptz)
            else try(to_timestamp(
                try_cast(rows.occurred_at as double) / case
                    when try_cast(rows.occurred_at as double) < 1e8 then null
                    when try_cast(rows.occurred_at as double) < 1e11 then 1
                    when try_cast(rows.occurred_at as double) < 1e14 then 1e3
                    when try_cast(rows.occurred_at as double) < 1e17 then 1e6
                    else 1e9
                end
            ))
        end as occurred_at,
        try_cast(rows.value as double) as value,
        trim(rows.value) <> '' as has_value,
        case when trim(rows.text) <> '' then rows.text end as text
    from rows
    left join types on trim(rows.event_type) = types.name
),

judged as (
    select
        source_row,
        coalesce(event_id, sha256(to_json([
            user_id, item_id, event_type, cast(try(epoch_us(occurred_at)) as varchar), cast(value as varchar), text
        ]))) as event_id,
        user_id,
        item_id,
        event_type,
        occurred_at,
        value,
        text,
        case
            when contains(concat(event_id, user_id, item_id, event_type, text), chr(0)) then
                'a value holds the character NUL, which is none of a text'
            when contains(concat(event_id, user_id, item_id), chr(65533)) then
                'an id holds the character U+FFFD, which stands where another was lost: correct it at its source'
            when user_id is null then 'user_id is missing'
            when coalesce(event_type, '') = '' then 'event_type is missing'
            when effect is null then
                'event_type ' || left(event_type, 100) || ' is not in the settings; add it there, then send the row again'
            when occurred_at is null or not isfinite(occurred_at) then
                'occurred_at is not a time: give ISO 8601 such as 2026-01-31T09:30:00Z, or Unix seconds'
            when occurred_at > $latest_at then 'occurred_at lies in the future'
            when has_value and value is null then 'value is not a number'
            when not isfinite(value) then 'value is NaN or infinite'
            when effect = 'rating' and value is null then 'value is missing, and a rating needs one'
            when effect = 'text' and text is null then 'text is missing, and an event of this type needs one'
            when effect = 'retraction' and event_id is null then
                'event_id is missing: a retraction names the event that it takes back'
            when effect not in ('text', 'retraction') and item_id is null then
                'item_id is missing, and an event of this type needs one'
        end as reason
    from parsed
),

final as (
    select
        source_row,
        event_id,
        user_id,
        item_id,
        event_type,
        occurred_at,
        value,
        text,
        reason,
        row_number() over (
            partition by event_id, user_id, item_id, event_type, occurred_at, value, text, reason is null
            order by source_row
        ) > 1 as is_duplicate
    from judged
)

select * from final
order by source_row
