-- One row is a user who ever wrote one of the texts in embedded_texts.
with
embedded as (select distinct content_hash from embedded_texts),
final as (
    select distinct raw_events.user_id
    from raw_events
    inner join embedded on sha256(trim(raw_events.text)) = embedded.content_hash
    order by raw_events.user_id
)
select * from final
