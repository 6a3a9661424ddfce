-- One row is a text of int_user_texts without an embedding under the encoder $encoder_id, by content.
with
known as (select content_hash from text_embeddings where encoder_id = $encoder_id),
final as (
    select texts.content_hash, min(texts.text) as text, min(texts.event_id) as used_by
    from int_user_texts as texts
    anti join known on texts.content_hash = known.content_hash
    group by texts.content_hash
    order by texts.content_hash
)
select * from final
