-- One row is a table that a training reads: its number of rows and a digest of their content, in any order.
with
digests as (
    select 'interactions' as part, hash(user_id, item_id, weight, last_at) as digest from fct_interactions
    union all
    select 'user texts' as part, hash(user_id, content_hash, occurred_at, weight) as digest from int_user_texts
    union all
    select 'items' as part, hash(item_id, content_hash, template_version) as digest from int_item_texts
    union all
    select 'availability' as part, hash(item_id, available) as digest from stg_items
    union all
    select 'item attributes' as part, hash(item_id, attributes) as digest from stg_items
    union all
    select 'users' as part, hash(user_id, attributes) as digest from stg_users
    union all
    select 'item vectors' as part, hash(content_hash, template_version) as digest
    from item_embeddings
    where encoder_id = $encoder_id
    union all
    select 'text vectors' as part, hash(content_hash) as digest
    from text_embeddings
    where encoder_id = $encoder_id
),
final as (
    select part, count(*) as n_rows, cast(sum(cast(digest as hugeint)) as varchar) as digest
    from digests
    group by part
    order by part
)
select * from final
