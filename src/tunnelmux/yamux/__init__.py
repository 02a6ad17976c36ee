"""yamux, compiled: the engine of a session, its streams, liveness and queues; no I/O and no clock.

`tunnelmux._frame`, the frame header and the windows, belongs to it too, but lies one folder above.
"""

from __future__ import annotations
