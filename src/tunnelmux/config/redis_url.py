"""The URL of a Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

__all__ = ["RedisPlace"]

_NOT_ONE = (
    "is not a Redis URL: write it like redis://:password@10.0.0.5:6379, with rediss:// for "
    "TLS, or redis+sentinel://:password@10.0.0.5:26379,10.0.0.6:26379/mymaster"
)


@dataclass(frozen=True, kw_only=True)
class RedisPlace:
    """The address of a Redis, and the credentials for it."""

    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port: of the one Redis, or of the Sentinels."""
    socket: str = ""
    """The path of a Unix socket; used in place of hosts."""
    primary: str = ""
    """The Sentinels' name for the primary; empty without Sentinels."""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    database: int = 0
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> RedisPlace:
        """`redis://[[user]:password@]host[:port][/database]`, `rediss://` for TLS,
        `unix://[[user]:password@]/path/of/socket`, and for Sentinels
        `redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/name[/database]`, or
        `rediss+sentinel://`. Raises ValueError for anything else; the message does not show the
        URL.
        """
        try:
            parts = urlsplit(url)
            scheme, _, sentinel = parts.scheme.partition("+")
            path = [part for part in parts.path.split("/") if part]
            login, _, hosts = parts.netloc.rpartition("@")
            user, _, password = login.partition(":")
            user, password = unquote(user), unquote(password)
            if scheme == "unix" and not sentinel and path and not hosts:
                return cls(socket=parts.path, user=user, password=password)
            if scheme in {"redis", "rediss"} and sentinel in {"", "sentinel"}:
                usual = 26379 if sentinel else 6379
                return cls(
                    hosts=_hosts_of(hosts, usual, several=bool(sentinel)),
                    primary=path.pop(0) if sentinel else "",
                    database=int(path.pop(0)) if path else 0,
                    tls=scheme == "rediss",
                    user=user,
                    password=password,
                )
        except (ValueError, IndexError):
            pass
        raise ValueError(_NOT_ONE)


def _hosts_of(text: str, usual: int, *, several: bool) -> tuple[tuple[str, int], ...]:
    hosts = []
    for item in text.split(",") if several else [text]:
        parts = urlsplit(f"//{item}")
        if not parts.hostname:
            raise ValueError(item)
        hosts.append((parts.hostname, parts.port or usual))
    return tuple(hosts)
