-- At most one row: the last switch of the serving version.
select publication_id, version, previous_version, action, n_items, n_users, snapshot, published_at
from publications
order by published_at desc, publication_id desc
limit 1
