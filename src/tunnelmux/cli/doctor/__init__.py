"""tunnelmux doctor: what stands between this machine and a server, one check after the other."""
