-- One row is a user's profile in the model version $version, by id.
select * from user_profiles where version = $version order by user_id
