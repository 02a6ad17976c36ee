"""What the commands of `tunnelmux` work on: devices behind tunnelmux-api, or behind one proxy."""
