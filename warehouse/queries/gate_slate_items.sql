-- one row: rows of slates of $version whose item the catalog does not have, or does not offer now
select count(*) as n_unknown
from mart_recommendations as slates
left join stg_items as items using (item_id)
where slates.version = $version and not coalesce(items.available, false)
