-- One row: how many rows of raw_events came by the commits after $after, up to $to, and when they arrived (seconds since
-- 1970): the times after which half of them came, 95 % and 99 %.
with
added as (
    select epoch(ingested_at) as arrived_at
    from raw_events
    where snapshot_id > $after and snapshot_id <= $to
),
final as (
    select count(*) as n_events, quantile_cont(arrived_at, [0.5, 0.05, 0.01]) as arrived_at
    from added
)
select * from final
