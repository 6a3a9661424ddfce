-- One row is an event that is to be removed with the user $user_id, once for each received row: every row that names
-- them, and every row of an event that is theirs now, or an older row of it would come back as another user's.
with
named as (select event_id, user_id, ingested_at, batch_id, source_row from raw_events where user_id = $user_id),
rows as (
    select raw_events.event_id, raw_events.user_id, raw_events.batch_id, raw_events.source_row, raw_events.ingested_at
    from raw_events
    semi join named on raw_events.event_id = named.event_id
),
latest as (
    select event_id, user_id
    from rows
    qualify row_number() over (partition by event_id order by ingested_at desc, batch_id desc, source_row desc) = 1
),
theirs as (select event_id from latest where user_id = $user_id),
final as (
    select rows.event_id, rows.batch_id, rows.source_row
    from rows
    left join theirs on rows.event_id = theirs.event_id
    where rows.user_id = $user_id or theirs.event_id is not null
)
select * from final
