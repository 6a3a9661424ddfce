-- One row is a model version, oldest first.
select version, state, created_at, training_snapshot from model_versions order by created_at, version
