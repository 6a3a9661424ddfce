-- One row: what the refreshes that found events since $since did together. The lags are the worst of any of them, and so
-- at least those of all their events taken together.
select
    count(*) as n_refreshes,
    coalesce(sum(n_events), 0)::bigint as n_events,
    coalesce(sum(n_users), 0)::bigint as n_users,
    max(lag_p50_seconds) as lag_p50_seconds,
    max(lag_p95_seconds) as lag_p95_seconds,
    max(lag_p99_seconds) as lag_p99_seconds
from nearline_runs
where n_events > 0 and finished_at > $since
