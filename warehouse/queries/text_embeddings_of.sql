-- One row is a wanted user text with its embedding under the encoder $encoder_id.
select text_embeddings.content_hash, text_embeddings.embedding
from text_embeddings
inner join wanted_texts on text_embeddings.content_hash = wanted_texts.content_hash
where text_embeddings.encoder_id = $encoder_id
order by text_embeddings.content_hash
