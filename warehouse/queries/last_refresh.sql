-- At most one row: the last refresh that found events.
select finished_at, n_events, n_users, lag_p50_seconds, lag_p95_seconds, lag_p99_seconds
from nearline_runs
where n_events > 0
order by finished_at desc, run_id
limit 1
