-- One row is a model version whose watermark has not moved since $before.
select version, snapshot from watermarks where updated_at < $before order by version
