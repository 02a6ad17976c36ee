"""The public facts of a session and of a visit. The first eight fields of a session have the JSON
names that existing back ends read.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["Presence", "SessionSummary", "VisitSummary", "shorten_token"]

_PREFIX_LENGTH = 6


def shorten_token(token: str) -> str:
    """The first characters of a token, enough to tell two apart in a log and too few to use.

    At most six, and never more than a quarter of the token.
    """
    return f"{token[: min(_PREFIX_LENGTH, len(token) // 4)]}…"


class SessionSummary(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False
):
    """One session at one moment; it does not change when the session does.

    The JSON names are the field names in camelCase (`userId`, `connectedAt`, …), and empty optional
    fields are left out. Times are in UTC. `token` is the whole token, because a caller that is let
    into the internal API finds sessions by it; `repr` shows only its first characters.
    """

    token: str
    user_id: str
    device_id: str = ""
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str = ""
    proxy_node_id: str = ""
    proxy_internal_url: str = ""
    agent_version: str = ""
    """As the agent says when it connects."""
    services: tuple[str, ...] = ()
    """The names of its services, as the agent says when it connects."""

    def without_agent(self) -> SessionSummary:
        """The first eight fields only, for back ends that refuse what they do not know."""
        return msgspec.structs.replace(self, agent_version="", services=())

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{name}={shorten_token(value) if name == 'token' else value!r}"
            for name in self.__struct_fields__
            if (value := getattr(self, name)) not in ("", ())
        )
        return f"SessionSummary({fields})"


class VisitSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One visitor's use of one service at one moment, as `GET /internal/visits` shows it.

    The JSON names are the field names in camelCase, and empty optional fields are left out.
    """

    id: str
    way: str
    """`http` or `tcp`: through an ingress; `raw`, `ws` or `exec`: a call of the back end."""
    device: str
    service: str = ""
    """The service asked for; empty for the device's default service, and for commands."""
    lease: str = ""
    """The id of the lease it runs under."""
    visitor: str
    """The visitor's address, as `host:port`; of a command, who asked for it."""
    scheme: str = ""
    """What the visitor speaks: `http`, `https`, `tcp`."""
    stream: int | None = None
    """The id of its stream on the session, once there is one."""
    since: datetime
    """When it began, in UTC."""
    bytes_in: int = 0
    """Bytes from the visitor so far."""
    bytes_out: int = 0
    waits_for: str = ""
    """What it waits for: `device`, `connect`, `answer`; in the pump its phase: `idle`, `reading`,
    `sending`, `waiting`, `answering`; empty where no deadline runs.
    """


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is kept of one device when the process ends. `last_seen` is in UTC."""

    online: bool = False
    last_seen: datetime
    reason: str = ""
    """Why its last session ended; empty while it is online."""
