"""What is shown of a session: eight fields, with the JSON names existing back ends read."""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = ["SessionSummary", "shorten_token"]

_PREFIX_LENGTH = 6


def shorten_token(token: str) -> str:
    """The first characters of a token, enough to tell two apart in a log and too few to use.

    At most six, and never more than a quarter of the token.
    """
    return f"{token[: min(_PREFIX_LENGTH, len(token) // 4)]}…"


class SessionSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One session at one moment; it does not change when the session does.

    The JSON names are the field names in camelCase (`userId`, `connectedAt`, …), and empty optional
    fields are left out. Times are in UTC. `token` is the whole token, because whoever is let into
    the internal API finds sessions by it; `repr` shows only its first characters.
    """

    token: str
    user_id: str
    device_id: str = ""
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str = ""
    proxy_node_id: str = ""
    proxy_internal_url: str = ""

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{name}={shorten_token(value) if name == 'token' else value!r}"
            for name in self.__struct_fields__
            if (value := getattr(self, name)) != ""
        )
        return f"SessionSummary({fields})"
