-- One row: whether the slates of the model version $version were written.
select exists (select 1 from mart_recommendations where version = $version) as has_slates
