"""The private HTTP API for the back end: connected agents, and access to them.

The paths, JSON keys and error codes are those that existing back ends were written for. One
listener serves it all: `server` reads and authenticates every request with the h11 stack that
visitors meet, then hands plain JSON routes their whole body and streaming routes the connection.
"""

from __future__ import annotations

from tunnelmux.proxy.internal.server import InternalServer, InternalSettings

__all__ = ["InternalServer", "InternalSettings"]
