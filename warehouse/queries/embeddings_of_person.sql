-- One row is an embedding of a text that nobody but the user $user_id has written, or nobody any more.
with
of_others as (
    select distinct sha256(trim(text)) as content_hash
    from raw_events
    where text is not null and user_id <> $user_id
),
final as (
    select text_embeddings.content_hash, text_embeddings.encoder_id
    from text_embeddings
    anti join of_others on text_embeddings.content_hash = of_others.content_hash
)
select * from final
