-- One row is a user of $user_ids who has an event or attributes.
with
known as (
    select user_id from raw_events
    union
    select user_id from raw_users
),
final as (
    select user_id
    from known
    where user_id in (select unnest($user_ids))
    order by user_id
)
select * from final
