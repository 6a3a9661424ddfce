-- One row: how many rows of text_embeddings have one of $content_hashes.
select count(*) as n_rows from text_embeddings where content_hash in (select unnest($content_hashes))
