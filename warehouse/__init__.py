"""SQL models, their contracts, and the catalog that reads them."""
