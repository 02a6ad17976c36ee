"""The SSH server for people: it finds out who they are, and joins and records their sessions.

It is a process of its own. asyncssh needs asyncio, so asyncio is the host and Trio its guest
(`guest`).
"""

from __future__ import annotations

__all__: list[str] = []
