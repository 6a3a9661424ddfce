-- one row is a row of source_rows as a user: typed, with the reason why it is refused (null: it is good)
with rows as (
    select source_row, user_id, attributes
    from source_rows
),

parsed as (
    select
        source_row,
        case when trim(user_id) <> '' then user_id end as user_id,
        nullif(trim(attributes), '') as attributes
    from rows
),

judged as (
    select
        source_row,
        user_id,
        attributes,
        case
            when contains(user_id, chr(0)) then 'a value holds the character NUL, which is none of a text'
            when contains(user_id, chr(65533)) then
                'an id holds the character U+FFFD, which stands where another was lost: correct it at its source'
            when user_id is null then 'user_id is missing'
            when attributes is not null and json_type(try_cast(attributes as json)) is distinct from 'OBJECT' then
                'attributes are not a JSON object'
        end as reason
    from parsed
),

final as (
    select
        source_row,
        user_id,
        attributes,
        reason,
        -- only of the row before it: attributes that change and change back are not what they were in between
        coalesce(
            row(attributes) = lag(row(attributes)) over (partition by user_id, reason is null order by source_row),
            false
        ) as is_duplicate
    from judged
)

select * from final
order by source_row
