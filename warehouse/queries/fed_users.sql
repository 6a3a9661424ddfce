-- One row is a user whom rows name that came by the commits after $after, up to $to: in an event, in a request for a
-- refresh, or in what users told of themselves (only_told: nowhere else); with the last of these commits, and when the
-- events arrived (seconds since 1970). Longest waiting first. Every row carries the snapshot it came with, also when
-- that has expired.
with
named as (
    select user_id, snapshot_id, epoch(ingested_at) as arrived_at, false as is_told
    from raw_events
    where snapshot_id > $after and snapshot_id <= $to
    union all
    select user_id, snapshot_id, null as arrived_at, false as is_told
    from refresh_requests
    where snapshot_id > $after and snapshot_id <= $to
    union all
    select user_id, snapshot_id, null as arrived_at, true as is_told
    from raw_users
    where snapshot_id > $after and snapshot_id <= $to
),
final as (
    select
        user_id,
        max(snapshot_id) as changed_at,
        bool_and(is_told) as only_told,
        list(arrived_at) filter (where arrived_at is not null) as arrived_at
    from named
    group by user_id
    order by min(snapshot_id), user_id
)
select * from final
