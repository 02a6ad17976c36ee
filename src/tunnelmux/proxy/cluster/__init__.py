"""One proxy as a node of several: a visitor at any of them reaches a device at any other."""
