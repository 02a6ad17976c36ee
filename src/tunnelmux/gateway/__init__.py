"""The SSH server for people: who they are, which devices they reach, what is kept of it.

A process of its own: asyncio runs it, because asyncssh does, and Trio is its guest (`guest`). The
rest of tunnelmux is Trio as everywhere.
"""

from __future__ import annotations

__all__: list[str] = []
