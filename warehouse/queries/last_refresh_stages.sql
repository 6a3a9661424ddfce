-- At most one row: the last refresh that found events, with its seconds by stage as JSON.
select stage_seconds, finished_at
from nearline_runs
where n_events > 0
order by finished_at desc, run_id
limit 1
