"""Socket.IO, client and server: the protocol of the relay service's main servers and agents.

Version 4; also version 2, if the configuration says so.

Import this only when there is a `[socketio]` table: it uses packet classes of python-engineio and
python-socketio, and importing those packages takes long.
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
