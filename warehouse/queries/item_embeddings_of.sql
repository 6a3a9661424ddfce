-- One row is a wanted item text with its embedding under the encoder and the template of the model version $version.
select item_embeddings.content_hash, item_embeddings.embedding
from item_embeddings
inner join model_versions
    on item_embeddings.encoder_id = model_versions.encoder_id
    and item_embeddings.template_version = model_versions.template_version
where
    model_versions.version = $version
    and item_embeddings.content_hash in (select content_hash from wanted_texts)
