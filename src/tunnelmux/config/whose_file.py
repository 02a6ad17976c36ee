"""Which daemon a configuration file is for, when it is given to another one by mistake."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["TABLES", "daemon_of"]

TABLES = {
    "tunnelmux-proxy": frozenset(
        {
            "access",
            "audit",
            "cluster",
            "devices",
            "drain",
            "groups",
            "ingress",
            "internal",
            "limits",
            "log",
            "otel",
            "proxy",
            "registry",
            "socketio",
            "tunnel",
        }
    ),
    "tunnelmux-agent": frozenset(
        {
            "assist",
            "audit",
            "backoff",
            "device",
            "drain",
            "exec",
            "limits",
            "log",
            "metrics",
            "otel",
            "proxy",
            "services",
            "shell",
            "socketio",
        }
    ),
    "tunnelmux-api": frozenset(
        {
            "api",
            "browser_sessions",
            "drain",
            "gateway",
            "limits",
            "log",
            "metrics",
            "oidc",
            "pairing",
            "proxies",
            "recordings",
            "registry",
        }
    ),
    "tunnelmux-gateway": frozenset(
        {
            "access",
            "drain",
            "gateway",
            "limits",
            "log",
            "proxies",
            "recording",
            "registry",
            "tunnels",
        }
    ),
}
"""The tables of each daemon's file. They are listed here because a program imports only its own
configuration.
"""


def daemon_of(tables: Iterable[str]) -> str | None:
    """The daemon whose file may have all of these tables, or None."""
    found = set(tables)
    return next((daemon for daemon, known in TABLES.items() if found <= known), None)
