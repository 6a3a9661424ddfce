-- The profiles of the model version $version are true for the snapshot $snapshot.
update watermarks set snapshot = $snapshot, updated_at = $updated_at where version = $version
