-- Removes the refused rows that erased_rows names.
delete from quarantine
where (batch_id, source_row, reason) in (select batch_id, source_row, reason from erased_rows)
