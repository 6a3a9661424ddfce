-- one row is a policy on a split: the metric over all users of the version
select split, policy, value, ci_low, ci_high, n_users
from eval_metrics
where version = $version and segment = 'all' and metric = $metric
order by split desc, value desc, policy
