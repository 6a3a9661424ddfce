-- One row is a text of users that was embedded by the commits after $after, up to $to.
select distinct content_hash from text_embeddings where snapshot_id > $after and snapshot_id <= $to
