-- One row is a user text among $hashes that has an embedding under the encoder $encoder_id.
with
embeddings as (select content_hash, encoder_id from text_embeddings),
final as (
    select content_hash
    from embeddings
    where encoder_id = $encoder_id and content_hash in (select unnest(cast($hashes as varchar[])))
)
select * from final
