-- What the last fit of the model version $version found: the linear map from text to factors.
update model_versions set text_map = $text_map where version = $version
