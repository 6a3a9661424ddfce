-- One row is a refused row that may tell of the user $user_id, as received.
with
rows as (
    select *, cast(cast(row_json as json) as map(varchar, varchar)) as received
    from quarantine
),
final as (
    select * exclude (received)
    from rows
    where list_contains(map_values(received), $user_id) or contains(received['unreadable'], $user_id)
)
select * from final
