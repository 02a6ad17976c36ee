"""Several processes of one proxy: a parent that binds and supervises, and workers that serve."""
