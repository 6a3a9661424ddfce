-- One row is a wanted item with its title, those that the fewest people liked in the training of $version first.
select wanted_items.item_id, stg_items.title, coalesce(item_factors.n_interactions, 0) as n_interactions
from wanted_items
left join stg_items on wanted_items.item_id = stg_items.item_id
left join item_factors on wanted_items.item_id = item_factors.item_id and item_factors.version = $version
order by n_interactions, wanted_items.item_id
