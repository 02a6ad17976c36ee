"""SSH as a client: commands on other machines. asyncssh does SSH, behind one bridge to Trio.

The pool of connections is in `ssh.pool`. It imports trio-asyncio, which changes asyncio for the
whole process. So a program that runs asyncio itself may import only this package, and not
`ssh.pool`.
"""

from __future__ import annotations

from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.host_keys import HostKeyCheck, HostKeyMode, HostKeys

__all__ = ["HostKeyCheck", "HostKeyMode", "HostKeys", "SshFailure"]
