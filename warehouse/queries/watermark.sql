-- One row: how far the change feed has been read for the model version $version.
select snapshot from watermarks where version = $version
