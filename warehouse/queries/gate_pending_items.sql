-- one row: the share of items with a text that has no embedding of any encoder
with texts as (
    select content_hash, template_version
    from int_item_texts
    where trim(text) <> ''
),

known as (
    select distinct content_hash, template_version
    from item_embeddings
)

select coalesce(avg(cast(known.content_hash is null as integer)), 0) as pending_share
from texts
left join known using (content_hash, template_version)
