-- One row is a model version, oldest first.
select version from model_versions order by version
