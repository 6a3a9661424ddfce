-- One row is a user with a profile in the model version $version, by id.
select user_id from user_profiles where version = $version order by user_id
