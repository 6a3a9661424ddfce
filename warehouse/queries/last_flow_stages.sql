-- One row is a stage of a flow, as it was when it ran last.
select
    flow,
    stage,
    arg_max(seconds, (finished_at, position)) as seconds,
    arg_max(n_in, (finished_at, position)) as n_in,
    arg_max(n_out, (finished_at, position)) as n_out
from flow_stages
group by flow, stage
order by flow, stage
