-- One row is an item of the catalog: what it is called and whether it may be recommended now, by id.
select item_id, title, available
from stg_items
order by item_id
