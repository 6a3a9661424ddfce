-- Removes the received rows that erased_rows names.
delete from raw_events
where (event_id, batch_id, source_row) in (select event_id, batch_id, source_row from erased_rows)
