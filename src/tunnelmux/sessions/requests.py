"""Requests that visitors made, each as it is told when it is over; and which of them are wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase

import msgspec

__all__ = ["RequestFilter", "RequestSeen"]

_STATUS = re.compile(r"[1-5](?:[0-9]{2}|xx)", re.ASCII)
_MOST_STATUSES = 16
_LONGEST = 256
# Characters of one condition: names have 63, and a path that is typed has no more.


class RequestSeen(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One request that is over, or one connection of another kind.

    The JSON names are the field names in camelCase, and empty optional fields are left out.
    """

    at: datetime
    """When it ended, in UTC."""
    way: str
    """`http` or `tcp`: through an ingress; `api`: one that tunnelmux-api passed on; `raw`, `ws` or
    `call`: through the internal API."""
    device: str = ""
    service: str = ""
    visitor: str = ""
    """The visitor's address, as `host:port`, or as trusted proxies tell it."""
    method: str = ""
    path: str = ""
    """Without its query."""
    status: int = 0
    """0 where there was no answer, and for what has none."""
    reason: str = ""
    """The `Tunnelmux-Reason` of an answer that the proxy itself gave."""
    bytes_in: int = 0
    """Content from the visitor."""
    bytes_out: int = 0
    seconds: float = 0.0
    upgraded: bool = False
    """Whether it changed to another protocol, as a WebSocket does."""
    ended: str = ""
    """How it ended, where the visitor left before the end."""
    problem: str = ""
    """What went wrong, in words."""


class RequestFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are wanted. What is empty is true of all."""

    device: str = ""
    service: str = ""
    statuses: tuple[str, ...] = ()
    """`404`, or a class: `5xx`."""
    path: str = ""
    """How it begins; with `*`, `?` or `[` a pattern for all of it."""

    @classmethod
    def parse(cls, said: Mapping[str, str]) -> RequestFilter:
        """From `device`, `service`, `status` (`404,5xx`) and `path`. Raises ValueError, which says
        what is wrong."""
        given = {key: said.get(key, "") for key in ("device", "service", "status", "path")}
        for key, value in given.items():
            if len(value) > _LONGEST:
                raise ValueError(f"{key} has more than {_LONGEST} characters")
        statuses = tuple(part.strip().lower() for part in given["status"].split(",") if part)
        for status in statuses:
            if _STATUS.fullmatch(status) is None:
                raise ValueError(f'status is 404 or 5xx, or some with commas, and not "{status}"')
        if len(statuses) > _MOST_STATUSES:
            raise ValueError(f"status names more than {_MOST_STATUSES}")
        path = given["path"]
        if path and not path.startswith(("/", "*")):
            raise ValueError('path begins with "/" or "*"')
        return cls(device=given["device"], service=given["service"], statuses=statuses, path=path)

    def matches(self, seen: RequestSeen) -> bool:
        """Whether this one is wanted."""
        return (
            self.device in ("", seen.device)
            and self.service in ("", seen.service)
            and (not self.statuses or self._has_status(seen.status))
            and (not self.path or self._has_path(seen.path))
        )

    def query(self) -> dict[str, str]:
        """The parameters from which `parse` makes the same filter."""
        said = {
            "device": self.device,
            "service": self.service,
            "status": ",".join(self.statuses),
            "path": self.path,
        }
        return {key: value for key, value in said.items() if value}

    def _has_status(self, status: int) -> bool:
        text = str(status)
        return any(text == wanted or f"{text[0]}xx" == wanted for wanted in self.statuses)

    def _has_path(self, path: str) -> bool:
        if any(mark in self.path for mark in "*?["):
            return fnmatchcase(path, self.path)
        return path.startswith(self.path)
