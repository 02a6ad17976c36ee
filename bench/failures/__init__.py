"""What visitors see when a part of an installation dies or hangs: `make failures`."""
