-- one row is an interaction of $user_id, newest first
select items.item_id, items.title, items.categories, interactions.weight, interactions.last_at
from fct_interactions as interactions
inner join stg_items as items using (item_id)
where interactions.user_id = $user_id
order by interactions.last_at desc, items.item_id
