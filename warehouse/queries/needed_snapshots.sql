-- One row is a model version that has a watermark: the snapshots that it still needs.
select watermarks.version, watermarks.snapshot as watermark, model_versions.training_snapshot
from watermarks
inner join model_versions on watermarks.version = model_versions.version
order by watermarks.version
