"""One module for each version of the database, the first to the last."""
