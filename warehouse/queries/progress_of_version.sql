-- At most one row: how far events and items have been read for the model version $version.
select snapshot, items_snapshot from watermarks where version = $version
