"""Both ends of a tunnel in one call: `connect` dials a URL, `serve` listens on one."""

from __future__ import annotations

from tunnelmux.endpoints.client import connect, dial, response_headers
from tunnelmux.endpoints.server import serve

__all__ = ["connect", "dial", "response_headers", "serve"]
