"""Ways to get a byte stream to the other side: WebSocket, TCP, TLS and memory."""

from __future__ import annotations

from tunnelmux.transports.dialling import WayOut, open_tcp
from tunnelmux.transports.handshake import UpgradeRequest, read_upgrade, send_answer
from tunnelmux.transports.memory import MemoryStream, memory_stream_pair
from tunnelmux.transports.reach import reach_of
from tunnelmux.transports.tcp import bound_addresses, open_listeners, serve_connections
from tunnelmux.transports.tls import (
    certificate_pin,
    client_context,
    server_context,
    start_server_tls,
)
from tunnelmux.transports.url import TunnelURL, parse_url
from tunnelmux.transports.websocket import WebSocketStream, accept_websocket, connect_websocket

__all__ = [
    "MemoryStream",
    "TunnelURL",
    "UpgradeRequest",
    "WayOut",
    "WebSocketStream",
    "accept_websocket",
    "bound_addresses",
    "certificate_pin",
    "client_context",
    "connect_websocket",
    "memory_stream_pair",
    "open_listeners",
    "open_tcp",
    "parse_url",
    "reach_of",
    "read_upgrade",
    "send_answer",
    "serve_connections",
    "server_context",
    "start_server_tls",
]
