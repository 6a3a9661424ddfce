-- one row is the user whose number of liked items is nearest to $n_liked
with liked as (
    select user_id, count(*) as n_liked
    from fct_interactions
    where weight > 0
    group by user_id
)

select user_id, n_liked
from liked
order by abs(n_liked - $n_liked), user_id
limit 1
