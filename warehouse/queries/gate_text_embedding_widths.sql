-- one row is an encoder: how many different widths its vectors have
select encoder_id, count(distinct len(embedding)) as n_widths
from text_embeddings
group by encoder_id
