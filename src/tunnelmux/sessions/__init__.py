"""The register of connected agents.

A session here is one agent's live connection; the yamux session inside it is
`tunnelmux.mux.Session`. The proxy registers a `LocalHandle` for every agent that connects in its
`MemoryStore`, where ingresses and the internal API look it up. A back end sees the same through a
`RemoteStore`.
"""

from __future__ import annotations

from tunnelmux.sessions.events import EventLog, SessionEvent, numbered_event, session_event
from tunnelmux.sessions.handle import CLOSED_BY_CALL, LocalHandle, OwnHandle, SessionHandle
from tunnelmux.sessions.memory import MemoryStore
from tunnelmux.sessions.remote import RemoteHandle, RemoteStore, SessionClient
from tunnelmux.sessions.requests import RequestFilter, RequestSeen
from tunnelmux.sessions.store import CLEANUP_INTERVAL, DeviceStore, SessionReader, SessionStore
from tunnelmux.sessions.summary import Presence, SessionSummary, VisitSummary, shorten_token

__all__ = [
    "CLEANUP_INTERVAL",
    "CLOSED_BY_CALL",
    "DeviceStore",
    "EventLog",
    "LocalHandle",
    "MemoryStore",
    "OwnHandle",
    "Presence",
    "RemoteHandle",
    "RemoteStore",
    "RequestFilter",
    "RequestSeen",
    "SessionClient",
    "SessionEvent",
    "SessionHandle",
    "SessionReader",
    "SessionStore",
    "SessionSummary",
    "VisitSummary",
    "numbered_event",
    "session_event",
    "shorten_token",
]
