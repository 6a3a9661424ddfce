-- one row is an event, once: its last received row, unless that takes it back
with rows as (
    select
        event_id, user_id, item_id, event_type, occurred_at, value, text,
        ingested_at, batch_id, source_row
    from raw_events
),

kept_types as (
    select name
    from event_types
    where effect <> 'retraction'
),

-- nearly all ids stand there once: only the others, found by a number in place of their text, have to be ordered
repeated as (
    select hash(event_id) as id_hash
    from rows
    group by hash(event_id)
    having count(*) > 1
),

latest as (
    select event_id, user_id, item_id, event_type, occurred_at, value, text
    from rows
    where hash(event_id) not in (select id_hash from repeated)
    union all
    select event_id, user_id, item_id, event_type, occurred_at, value, text
    from rows
    where hash(event_id) in (select id_hash from repeated)
    qualify row_number() over (
        partition by event_id order by ingested_at desc, batch_id desc, source_row desc
    ) = 1
),

final as (
    select
        latest.event_id,
        latest.user_id,
        latest.item_id,
        latest.event_type,
        latest.occurred_at,
        latest.value,
        latest.text
    from latest
    inner join kept_types on latest.event_type = kept_types.name
)

select * from final
