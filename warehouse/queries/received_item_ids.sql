-- One row is an item that was ever received, by id.
select distinct item_id from raw_items order by item_id
