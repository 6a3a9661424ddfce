-- One row is a trial of the study $study, by number.
select
    number, origin, state, parameters, ndcg_at_10, ci_low, ci_high, n_users, user_ndcg, split, snapshot, seconds, error
from factor_trials
where study = $study
order by number
