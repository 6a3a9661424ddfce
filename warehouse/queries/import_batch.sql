-- one row: what an import did that had this content; none if there was none
select source, n_rows, n_accepted, n_quarantined, n_duplicates, imported_at
from import_batches
where batch_id = $batch_id and table_name = $table_name
