-- One row: how far items and texts of users have been brought to the model version $version; seen_items is null where
-- nothing has been yet.
select
    watermarks.items_snapshot as seen_items,
    coalesce(watermarks.items_snapshot, model_versions.training_snapshot) as items_snapshot,
    coalesce(watermarks.texts_snapshot, model_versions.training_snapshot) as texts_snapshot
from watermarks
inner join model_versions on watermarks.version = model_versions.version
where watermarks.version = $version
