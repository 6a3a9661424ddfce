-- One row is an item that a row came of by the commits after $after, up to $to. Every row carries the snapshot it came
-- with, also when that has expired.
select distinct item_id from raw_items where snapshot_id > $after and snapshot_id <= $to order by item_id
