-- One row is a check of the run $run_id, failed ones first.
select gate, table_name, expectation, column_name, severity, passed, observed, allowed, n_failed, advice, version
from gate_results
where run_id = $run_id
order by passed, severity, checked_at, gate, table_name, expectation, column_name
