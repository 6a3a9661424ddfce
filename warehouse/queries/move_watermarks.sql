-- Every version's profiles count as true for the snapshot $snapshot.
update watermarks set snapshot = greatest(snapshot, $snapshot), updated_at = $updated_at
