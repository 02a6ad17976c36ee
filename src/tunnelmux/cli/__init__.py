"""The commands: from arguments to a configuration, a run, and an exit status."""
