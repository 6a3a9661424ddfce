-- One row is a switch of the serving version, oldest first.
select version, previous_version, action, published_at
from publications
order by published_at, publication_id
