-- One row: how many rows were ever refused and are kept.
select count(*) as n_rows from quarantine
