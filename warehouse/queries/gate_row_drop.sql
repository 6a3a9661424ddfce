-- one row: the share of its rows that $table_name lost between the last two builds; 0 if it was built once
with counted as (
    select n_rows, lead(n_rows) over (order by built_at desc) as n_before
    from builds
    where table_name = $table_name
    order by built_at desc
    limit 1
)

select coalesce(max(greatest(0, 1 - n_rows / nullif(n_before, 0))), 0) as lost_share
from counted
