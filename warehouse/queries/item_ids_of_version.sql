-- One row is an item of the model version $version, by id.
select item_id from item_factors where version = $version order by item_id
