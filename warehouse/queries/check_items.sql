-- one row is a row of source_rows as an item: typed, with the reason why it is refused (null: it is good)
with rows as (
    select source_row, item_id, title, description, categories, attributes, available, updated_at
    from source_rows
),

parsed as (
    select
        source_row,
        case when trim(item_id) <> '' then item_id end as item_id,
        title,
        description,
        case
            when trim(coalesce(categories, '')) = '' or categories = $no_categories then []
            when trim(categories) like '[%' then try(from_json(categories, '["VARCHAR"]'))
            else string_split(categories, $separator)
        end as categories,
        nullif(trim(attributes), '') as attributes,
        case when trim(coalesce(available, '')) = '' then true else try_cast(trim(available) as boolean) end as available,
        trim(coalesce(updated_at, '')) <> '' as has_updated_at,
        case
            when try_cast(updated_at as double) is null then try_cast(trim(updated_at) as timestamptz)
            else try(to_timestamp(
                try_cast(updated_at as double) / case
                    when try_cast(updated_at as double) < 1e8 then null
                    when try_cast(updated_at as double) < 1e11 then 1
                    when try_cast(updated_at as double) < 1e14 then 1e3
                    when try_cast(updated_at as double) < 1e17 then 1e6
                    else 1e9
                end
            ))
        end as updated_at
    from rows
),

judged as (
    select
        source_row,
        item_id,
        title,
        description,
        [trim(category) for category in categories if trim(category) <> ''] as categories,
        attributes,
        available,
        updated_at,
        case
            when contains(concat(item_id, title, description, array_to_string(categories, '')), chr(0)) then
                'a value holds the character NUL, which is none of a text'
            when contains(item_id, chr(65533)) then
                'an id holds the character U+FFFD, which stands where another was lost: correct it at its source'
            when item_id is null then 'item_id is missing'
            when categories is null then 'categories begin like a JSON list, but are none'
            when attributes is not null and json_type(try_cast(attributes as json)) is distinct from 'OBJECT' then
                'attributes are not a JSON object'
            when available is null then 'available is neither true nor false'
            when has_updated_at and (updated_at is null or not isfinite(updated_at)) then
                'updated_at is not a time: give ISO 8601 such as 2026-01-31T09:30:00Z, or Unix seconds'
        end as reason
    from parsed
),

final as (
    select
        source_row,
        item_id,
        title,
        description,
        categories,
        attributes,
        available,
        updated_at,
        reason,
        -- only of the row before it: an item that changes and changes back is not what it was in between
        coalesce(
            row(title, description, categories, attributes, available, updated_at)
            = lag(row(title, description, categories, attributes, available, updated_at)) over (
                partition by item_id, reason is null order by source_row
            ),
            false
        ) as is_duplicate
    from judged
)

select * from final
order by source_row
