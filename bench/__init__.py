"""`make bench`: tunnelmux and its peers, measured side by side on this machine."""
