-- One row is an available item and a wanted item that is its neighbour in the model version $version.
select item_neighbours.item_id, item_neighbours.neighbour_id, item_neighbours.strength, stg_items.title
from item_neighbours
inner join wanted_items on item_neighbours.neighbour_id = wanted_items.item_id
inner join stg_items on item_neighbours.item_id = stg_items.item_id
where item_neighbours.version = $version and stg_items.available
order by item_neighbours.item_id, item_neighbours.neighbour_id
