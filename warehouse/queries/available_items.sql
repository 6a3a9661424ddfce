-- One row: how many items may be recommended now.
select count(*) as n_items from stg_items where available
