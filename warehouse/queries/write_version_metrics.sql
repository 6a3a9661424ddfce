-- The headline metrics of the model version $version.
update model_versions set metrics = $metrics where version = $version
