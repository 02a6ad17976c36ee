"""The protocol between nodes on the streams of a hop. `CONNECT dev1` with the generation of the
session begins a stream to that device, byte for byte. `GET /v1/devices/dev1` asks for the node's
data about it, `DELETE` with the generation ends that session. `GET /v1/session` asks the same about
the session of a token, which a field says. All concern sessions of the asked node only, at
whichever of its workers: no stream goes over three machines.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from tunnelmux.config.rules import DOMAIN_LABEL
from tunnelmux.proxy.internal.routes import TOKEN_FIELD
from tunnelmux.wire import LONGEST_TIMEOUT, MOST_SERVICES

__all__ = ["DEVICE_PATH", "MOVED", "SESSION_PATH", "SESSION_TOKEN_FIELD", "DeviceThere"]

DEVICE_PATH = "/v1/devices/"
"""The prefix of a device's name."""

SESSION_PATH = "/v1/session"
"""The path of the session whose token SESSION_TOKEN_FIELD says."""

SESSION_TOKEN_FIELD = TOKEN_FIELD.encode("ascii")
"""Not in the path, so that no line of a log can show it."""

MOVED = "device-moved"
"""The Tunnelmux-Reason where the session is not, or no longer, on the asked node."""


_Generation = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z")]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_TIMEOUT)]
_Service = Annotated[str, msgspec.Meta(pattern=rf"^({DOMAIN_LABEL.pattern})?\Z")]
_OfServices = msgspec.Meta(max_length=2 * MOST_SERVICES)


class DeviceThere(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node's answer about a device whose session it has."""

    generation: _Generation
    device: _Service = ""
    """The device's name, where the question was about a token."""
    user_id: str = ""
    connected_at: _Time
    last_heartbeat: _Time
    remote_addr: str = ""
    credential: _Digest = ""
    """The digest of `SessionHandle.credential`, in hexadecimal."""
    default_service: _Service = ""
    relayed: Annotated[dict[_Service, _Service], _OfServices] = {}
    """Services that take raw connections; the empty name is the default service."""
    timeouts: Annotated[dict[str, _Seconds], _OfServices] = {}
    """Response timeouts in seconds by service; the empty name is the default service."""
