-- One row is a table that people ask about, with its number of rows.
select 'raw_items' as table_name, count(*) as n_rows from raw_items
union all
select 'raw_users', count(*) from raw_users
union all
select 'raw_events', count(*) from raw_events
union all
select 'quarantine', count(*) from quarantine
union all
select 'item_embeddings', count(*) from item_embeddings
union all
select 'model_versions', count(*) from model_versions
union all
select 'mart_recommendations', count(*) from mart_recommendations
