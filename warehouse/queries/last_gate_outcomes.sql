-- One row is a gate: how its checks ended the last time that it ran.
with
ranked as (
    select
        gate, severity, passed, checked_at,
        rank() over (partition by gate order by run_checked_at desc, run_id) as recency
    from (
        select gate, run_id, severity, passed, checked_at, max(checked_at) over (partition by gate, run_id) as run_checked_at
        from gate_results
    )
),
final as (
    select
        gate,
        count(*) filter (where passed) as n_passed,
        count(*) filter (where not passed and severity = 'warn') as n_warned,
        count(*) filter (where not passed and severity = 'stop') as n_failed,
        max(checked_at) as checked_at
    from ranked
    where recency = 1
    group by gate
    order by gate
)
select * from final
