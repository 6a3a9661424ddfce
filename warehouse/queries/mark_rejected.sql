-- The model version $version was stopped by a gate; one that has served keeps its state.
update model_versions set state = 'rejected' where version = $version and state = 'candidate'
