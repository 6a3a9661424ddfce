-- One row is a snapshot that can still be read, oldest first.
select snapshot_id from lake.snapshots() order by snapshot_id
