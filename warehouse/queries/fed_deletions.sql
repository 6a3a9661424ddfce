-- One row is a row that the commits $first to $last deleted from raw_events, in the state before.
select event_id, user_id from lake.table_deletions('raw_events', $first, $last)
