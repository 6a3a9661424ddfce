-- one row: interactions whose user or item the staging tables do not have
select count(*) as n_unknown
from fct_interactions as interactions
left join stg_users as users using (user_id)
left join stg_items as items using (item_id)
where users.user_id is null or items.item_id is null
