-- One row is a user whose profile in the model version $version is true for a later snapshot than $snapshot, by id.
select user_id, text_embedding, factors, n_history, alpha, beta, drift, seen_items, as_of_snapshot
from user_profiles
where version = $version and as_of_snapshot > $snapshot
order by user_id
