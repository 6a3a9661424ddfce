-- one row: the newest run of the SQL models, all tables together; none before the first
select any_value(inputs_hash) as inputs_hash, cast(sum(n_rows) as bigint) as n_rows
from builds
where built_at = (select max(built_at) from builds)
having count(*) > 0
