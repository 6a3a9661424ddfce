-- The model version $version has served.
update model_versions set state = 'published' where version = $version
