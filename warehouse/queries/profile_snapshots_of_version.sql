-- One row is a user's profile in the model version $version, by id: the snapshot it is true for and what the user has met.
select user_id, as_of_snapshot, seen_items from user_profiles where version = $version order by user_id
