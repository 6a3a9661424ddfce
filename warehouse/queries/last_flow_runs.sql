-- One row is a flow: its last run, and when the last one that did not fail ended.
select
    flow,
    arg_max(outcome, finished_at) as outcome,
    arg_max(error, finished_at) filter (where outcome = 'Failed') as error,
    max(finished_at) as finished_at,
    arg_max(date_diff('millisecond', started_at, finished_at) / 1000.0, finished_at) as seconds,
    max(finished_at) filter (where outcome <> 'Failed') as succeeded_at
from flow_runs
group by flow
order by flow
