-- one row is an item, its latest valid state
with rows as (
    select
        item_id, title, description, categories, attributes, available, updated_at,
        ingested_at, batch_id, source_row
    from raw_items
),

latest as (
    select
        item_id, title, description, categories, attributes, available, updated_at,
        min(ingested_at) over (partition by item_id) as first_seen_at
    from rows
    qualify row_number() over (
        partition by item_id order by ingested_at desc, batch_id desc, source_row desc
    ) = 1
),

final as (
    select
        item_id,
        coalesce(trim(title), '') as title,
        coalesce(trim(description), '') as description,
        [trim(category) for category in coalesce(categories, []) if trim(category) <> ''] as categories,
        attributes,
        available,
        updated_at,
        first_seen_at
    from latest
)

select * from final
