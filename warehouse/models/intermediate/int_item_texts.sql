-- one row is an item and the text that is embedded for it (template v1: title, categories, description)
with items as (
    select item_id, title, categories, description
    from stg_items
),

texts as (
    select
        item_id,
        concat_ws(
            '. ',
            nullif(title, ''),
            nullif(array_to_string(categories, ', '), ''),
            nullif(description, '')
        ) as text
    from items
),

final as (
    select
        item_id,
        text,
        sha256(text) as content_hash,
        'v1' as template_version
    from texts
)

select * from final
