-- One row is an item of the catalog, by id.
select item_id from stg_items order by item_id
