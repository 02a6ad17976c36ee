"""Socket.IO, client and server: what the relay service's main servers and agents speak.

Of version 4; of version 2 too, where the configuration says so.

Import this only where a `[socketio]` table asks for it: the packet classes it takes from
python-engineio and python-socketio bring those packages' whole import time with them.
"""

from __future__ import annotations

from tunnelmux.socketio.connection import (
    Admitted,
    Event,
    Refusal,
    Socket,
    SocketIOServer,
    SocketOver,
    connect_socketio,
)
from tunnelmux.socketio.engine import EngineSettings, MessageTooLarge
from tunnelmux.socketio.engine_client import (
    EngineVersion,
    SocketIOURL,
    Transports,
    parse_socketio_url,
)
from tunnelmux.socketio.engine_server import ServerSettings

__all__ = [
    "Admitted",
    "EngineSettings",
    "EngineVersion",
    "Event",
    "MessageTooLarge",
    "Refusal",
    "ServerSettings",
    "Socket",
    "SocketIOServer",
    "SocketIOURL",
    "SocketOver",
    "Transports",
    "connect_socketio",
    "parse_socketio_url",
]
