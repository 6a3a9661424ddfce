-- What the last fit of the model version $version found: the linear maps from text and from attributes to factors.
update model_versions
set
    text_map = $text_map,
    user_map = $user_map,
    user_features = $user_features,
    item_map = $item_map,
    item_features = $item_features
where version = $version
