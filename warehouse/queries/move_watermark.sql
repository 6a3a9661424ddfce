-- The profiles of the model version $version are true for the snapshot $snapshot, if not for a later one already.
update watermarks set snapshot = greatest(snapshot, $snapshot), updated_at = $updated_at where version = $version
