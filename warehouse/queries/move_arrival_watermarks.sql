-- Items up to $items_snapshot and texts of users up to $texts_snapshot are in the model version $version; null leaves
-- them where they are. If another call has moved the items since this one began, at $began_at, what the two wrote may be
-- mixed: then the next call begins there again.
update watermarks
set
    items_snapshot = case
        when cast($items_snapshot as bigint) is null then items_snapshot
        when items_snapshot is not distinct from $seen_items then $items_snapshot
        else $began_at
    end,
    texts_snapshot = coalesce(greatest(texts_snapshot, $texts_snapshot), texts_snapshot)
where version = $version
