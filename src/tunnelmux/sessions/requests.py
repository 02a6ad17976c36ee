"""Finished requests of visitors, as they are reported, and filters for them."""

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
# Characters of one condition: names have 63, and a path that a person types is not longer.


class RequestSeen(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One finished request, or one connection of another kind.

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
    """The visitor's address as `host:port`, or as trusted proxies report it."""
    method: str = ""
    path: str = ""
    """The path without the query."""
    status: int = 0
    """HTTP status; 0 where there was no answer, and for connections that are not HTTP."""
    reason: str = ""
    """The `Tunnelmux-Reason` of an answer that the proxy itself gave."""
    bytes_in: int = 0
    """Bytes of content from the visitor."""
    bytes_out: int = 0
    seconds: float = 0.0
    upgraded: bool = False
    """Whether it changed to another protocol, as a WebSocket does."""
    ended: str = ""
    """How it ended, where the visitor left early."""
    problem: str = ""
    """What went wrong, in words."""


class RequestFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on requests. An empty condition matches all."""

    device: str = ""
    service: str = ""
    statuses: tuple[str, ...] = ()
    """`404`, or a class: `5xx`."""
    path: str = ""
    """A prefix of the path; with `*`, `?` or `[` a pattern for the whole path."""

    @classmethod
    def parse(cls, said: Mapping[str, str]) -> RequestFilter:
        """A filter from the parameters `device`, `service`, `status` (`404,5xx`) and `path`. Raises
        ValueError with what is wrong.
        """
        given = {key: said.get(key, "") for key in ("device", "service", "status", "path")}
        for key, value in given.items():
            if len(value) > _LONGEST:
                raise ValueError(f"{key} has more than {_LONGEST} characters")
        statuses = tuple(part.strip().lower() for part in given["status"].split(",") if part)
        for status in statuses:
            if _STATUS.fullmatch(status) is None:
                raise ValueError(f'status must be 404, 5xx or a list of such, not "{status}"')
        if len(statuses) > _MOST_STATUSES:
            raise ValueError(f"status names more than {_MOST_STATUSES}")
        path = given["path"]
        if path and not path.startswith(("/", "*")):
            raise ValueError('path must begin with "/" or "*"')
        return cls(device=given["device"], service=given["service"], statuses=statuses, path=path)

    def matches(self, seen: RequestSeen) -> bool:
        """Whether the request meets all conditions."""
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
