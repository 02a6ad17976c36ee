"""The Trio face of the yamux engine: `Session`, `Stream`, and `open_session` to make one.

`WindowBudget` is what several sessions share to bound the growth of their receive windows.
"""

from __future__ import annotations

from tunnelmux.mux.session import Session, open_session
from tunnelmux.mux.stream import Stream
from tunnelmux.yamux.streams import WindowBudget

__all__ = ["Session", "Stream", "WindowBudget", "open_session"]
