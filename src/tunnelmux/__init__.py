"""Reach devices behind NAT: yamux sessions over WebSockets, on Trio.

>>> async with tunnelmux.connect("wss://proxy.example.com/tunnel/connect", token=token) as session:
...     async for stream in session:
...         nursery.start_soon(handle, stream)

- `connect` dials and gives a `Session`; `serve` gives one to a handler for each peer that dials in.
- `Session` opens and accepts `Stream`s; each is a `trio.abc.HalfCloseableStream`.
- `Limits` bounds what a session may hold; `errors` says what can go wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelmux import errors
from tunnelmux.limits import Limits

if TYPE_CHECKING:
    from tunnelmux.endpoints import connect, serve
    from tunnelmux.mux import Session, Stream

__version__ = "0.1.0"

__all__ = ["Limits", "Session", "Stream", "__version__", "connect", "errors", "serve"]

# Trio and the WebSocket stack take a fifth of a second to import; `tunnelmux-agent --help` and
# `check` need neither.
_LAZY = {
    "Session": "tunnelmux.mux",
    "Stream": "tunnelmux.mux",
    "connect": "tunnelmux.endpoints",
    "serve": "tunnelmux.endpoints",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
