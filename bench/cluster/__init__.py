"""A whole installation of several processes, to look at: `make demo-cluster`."""
