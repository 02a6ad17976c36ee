"""Commands over SSH: asyncssh behind one bridge, Trio outside.

Importing this package imports asyncio and asyncssh, which takes a third of a second: import it
where commands are really run.
"""

from __future__ import annotations

from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.host_keys import HostKeyMode, HostKeys
from tunnelmux.ssh.pool import PoolFigures, SshPool, open_pool

__all__ = [
    "HostKeyMode",
    "HostKeys",
    "Login",
    "PoolFigures",
    "SshFailure",
    "SshPool",
    "open_pool",
]
