-- One row is a metric of a policy over all users, for the model version $version.
select split, metric, policy, value, ci_low, ci_high, n_users
from eval_metrics
where version = $version and segment = 'all'
order by metric <> 'ndcg_at_10', metric, split desc, value desc, policy
