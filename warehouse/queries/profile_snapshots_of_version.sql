-- One row is a user's profile in the model version $version, by id: the snapshot it is true for.
select user_id, as_of_snapshot from user_profiles where version = $version order by user_id
