-- one row is a user: the latest valid state, and everyone who has an event
with rows as (
    select user_id, attributes, ingested_at, batch_id, source_row
    from raw_users
),

events as (
    select user_id
    from stg_events
),

described as (
    select user_id, attributes
    from rows
    qualify row_number() over (
        partition by user_id order by ingested_at desc, batch_id desc, source_row desc
    ) = 1
),

active as (
    select distinct user_id
    from events
),

final as (
    select
        coalesce(described.user_id, active.user_id) as user_id,
        described.attributes
    from described
    full join active on described.user_id = active.user_id
)

select * from final
