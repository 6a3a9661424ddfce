-- one row is an item the user has not met, of the category they liked least beside how often others like it
with likes as (
    select interactions.user_id = $user_id as is_user, unnest(items.categories) as category
    from fct_interactions as interactions
    inner join stg_items as items using (item_id)
    where interactions.weight > 0
),

shares as (
    select
        category,
        count(*) filter (where is_user) / greatest(sum(count(*) filter (where is_user)) over (), 1) as user_share,
        count(*) / sum(count(*)) over () as all_share
    from likes
    group by category
),

chosen as (
    select category
    from shares
    where all_share >= 0.02
    order by user_share / all_share, all_share desc, category
    limit 1
),

popularity as (
    select item_id, count(*) as n_users
    from fct_interactions
    where weight > 0
    group by item_id
),

met as (
    select item_id from raw_events where user_id = $user_id and item_id is not null
)

select items.item_id, items.title, chosen.category
from stg_items as items
inner join chosen on list_contains(items.categories, chosen.category)
inner join popularity using (item_id)
where items.available and items.item_id not in (select item_id from met)
order by popularity.n_users desc, items.item_id
limit $n_items
