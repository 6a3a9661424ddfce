-- One row is an item text among $hashes that has an embedding under the encoder $encoder_id.
with
embeddings as (select content_hash, encoder_id, template_version from item_embeddings),
final as (
    select content_hash, template_version
    from embeddings
    where encoder_id = $encoder_id and content_hash in (select unnest(cast($hashes as varchar[])))
)
select * from final
