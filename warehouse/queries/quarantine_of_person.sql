-- One row is a refused row that may tell of the user $user_id: a value of it equals the id, or it could not be taken
-- apart and its text contains the id.
with
rows as (
    select batch_id, source_row, reason, cast(cast(row_json as json) as map(varchar, varchar)) as received
    from quarantine
),
final as (
    select batch_id, source_row, reason
    from rows
    where list_contains(map_values(received), $user_id) or contains(received['unreadable'], $user_id)
)
select * from final
