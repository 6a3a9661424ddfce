-- One row is a model version with rows of its own in the warehouse.
with
stored as (
    select version from item_factors
    union
    select version from item_neighbours
    union
    select version from user_factors
    union
    select version from user_profiles
    union
    select version from mart_recommendations
    union
    select version from watermarks
)
select version from stored order by version
