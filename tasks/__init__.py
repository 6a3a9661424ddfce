"""One module per unit of work that is retried or reported alone."""
