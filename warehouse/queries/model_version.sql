-- One row: the model version $version.
select * from model_versions where version = $version
