-- one row is a row that was refused, of the newest $limit refused since $since, the oldest first
with newest as (
    select table_name, reason, row_json, quarantined_at, batch_id, source_row
    from quarantine
    where quarantined_at >= $since
    order by quarantined_at desc, batch_id desc, source_row desc
    limit $limit
)

select table_name, reason, row_json
from newest
order by quarantined_at, batch_id, source_row
