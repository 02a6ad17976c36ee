"""HTTP/1.1 on streams: exchanges, and raw connections that begin with CONNECT."""

from __future__ import annotations

from tunnelmux.http.connect import (
    ConnectFailed,
    ConnectStream,
    accept_connect,
    open_connect,
    requested_service,
)
from tunnelmux.http.connection import (
    ClientConnection,
    PeerGone,
    ServerConnection,
    UpstreamGone,
    VisitorGone,
)
from tunnelmux.http.exchange import Exchange, Upstream, forward
from tunnelmux.http.head import Field, RequestHead, ResponseHead
from tunnelmux.http.kept_upstream import KeptUpstream
from tunnelmux.http.refusal import REASONS, Refusal, Refused
from tunnelmux.http.serving import Route, serve_requests, while_visitor_stays
from tunnelmux.http.unfinished import UnfinishedHeads
from tunnelmux.wire import REASON_FIELD

__all__ = [
    "REASONS",
    "REASON_FIELD",
    "ClientConnection",
    "ConnectFailed",
    "ConnectStream",
    "Exchange",
    "Field",
    "KeptUpstream",
    "PeerGone",
    "Refusal",
    "Refused",
    "RequestHead",
    "ResponseHead",
    "Route",
    "ServerConnection",
    "UnfinishedHeads",
    "Upstream",
    "UpstreamGone",
    "VisitorGone",
    "accept_connect",
    "forward",
    "open_connect",
    "requested_service",
    "serve_requests",
    "while_visitor_stays",
]
