-- One row is a user, by id.
select user_id from stg_users order by user_id
