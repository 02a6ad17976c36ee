"""The ports of the demo: those in the documentation, where no other program has them."""

from __future__ import annotations

import errno
import socket

__all__ = ["HOST", "free_port"]

HOST = "127.0.0.1"


def free_port(port: int) -> int:
    """The port if it can be listened on now, else 0, for which the system chooses one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the real listener does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            return 0
    return port
