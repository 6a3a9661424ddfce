-- One row is an item as received once, for the wanted items.
select raw_items.*
from raw_items
inner join wanted_items on raw_items.item_id = wanted_items.item_id
