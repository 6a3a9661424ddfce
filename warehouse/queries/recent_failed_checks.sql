-- One row is a check that failed in the last run of its gate.
with
ranked as (
    select
        checked_at, gate, table_name, expectation, severity, observed, advice, passed,
        rank() over (partition by gate order by max_checked_at desc, run_id) as recency
    from (select *, max(checked_at) over (partition by gate, run_id) as max_checked_at from gate_results)
),
final as (
    select checked_at, gate, table_name as "table", expectation, severity, observed, advice
    from ranked
    where recency = 1 and not passed
    order by severity, checked_at desc, gate, table_name, expectation
    limit 20
)
select * from final
