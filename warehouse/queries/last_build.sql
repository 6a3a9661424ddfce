-- one row: the newest run of the SQL models; none before the first
select inputs_hash, n_rows
from builds
order by built_at desc
limit 1
