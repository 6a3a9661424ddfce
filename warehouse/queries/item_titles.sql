-- One row is a wanted item with its title; items that are not in the catalog are left out.
select stg_items.item_id, stg_items.title
from stg_items
inner join wanted_items on stg_items.item_id = wanted_items.item_id
