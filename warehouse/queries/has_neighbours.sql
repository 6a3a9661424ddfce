-- One row: whether the model version $version has neighbours of items.
select exists (select 1 from item_neighbours where version = $version) as has_neighbours
