"""SSH as a client: commands on other machines, by asyncssh behind one bridge, Trio outside.

The pool of connections is in `ssh.pool`. It imports trio-asyncio, which makes asyncio one that runs
inside Trio, for the whole process: a program that has asyncio as its host uses only what is here.
"""

from __future__ import annotations

from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.host_keys import HostKeyCheck, HostKeyMode, HostKeys

__all__ = ["HostKeyCheck", "HostKeyMode", "HostKeys", "SshFailure"]
