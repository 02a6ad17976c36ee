"""The addresses of a tunnel: ws://, wss://, tcp:// and tls:// URLs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from tunnelmux.errors import ConfigError
from tunnelmux.wire import TUNNEL_PATH

__all__ = ["TunnelURL", "parse_url"]

_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_SECURE = frozenset({"wss", "tls"})

_MOST_PARSED = 32
# URLs that are kept parsed: each connection asks for its own four times. A proxy tells of 8 nodes.


@dataclass(frozen=True, slots=True)
class TunnelURL:
    """A parsed tunnel URL. `target` is the path with its query, for ws and wss only."""

    scheme: str
    host: str
    port: int
    target: str = "/"

    @property
    def is_secure(self) -> bool:
        """Whether the connection is made over TLS."""
        return self.scheme in _SECURE

    @property
    def is_websocket(self) -> bool:
        """Whether the byte stream runs inside a WebSocket."""
        return self.scheme in _DEFAULT_PORTS

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def authority(self) -> str:
        """host:port as a Host header has it, the scheme's default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if _DEFAULT_PORTS.get(self.scheme) == self.port:
            return host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """The URL without its query, which may hold a token."""
        return f"{self.scheme}://{self.authority}{self.path if self.is_websocket else ''}"

    def __repr__(self) -> str:
        return f"<TunnelURL {self}>"


@lru_cache(_MOST_PARSED)
def parse_url(url: str) -> TunnelURL:
    """Take a tunnel URL apart; a ConfigError says what is wrong with it and what one looks like."""
    example = f"write for example ws://proxy.example.com:3800{TUNNEL_PATH}"
    # A URL that cannot be parsed is never shown whole: it may hold a token in its query or
    # userinfo.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"the tunnel URL cannot be read ({exc}); {example}") from None
    if parts.scheme not in {"ws", "wss", "tcp", "tls"}:
        seen = f"the scheme {parts.scheme!r}" if parts.scheme else "no scheme"
        raise ConfigError(f"the tunnel URL has {seen}, not ws, wss, tcp or tls; {example}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the tunnel URL holds a user name or password; remove it and set the token instead"
        )
    if not parts.hostname:
        raise ConfigError(f"the tunnel URL names no host; {example}")
    if port is None:
        port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None:
        raise ConfigError(f"a {parts.scheme}:// URL needs a port, as in {parts.scheme}://host:3800")
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    if not target.isascii() or any(c <= " " or c == "\x7f" for c in target):
        raise ConfigError("the tunnel URL's path holds characters that must be percent-encoded")
    return TunnelURL(parts.scheme, parts.hostname, port, target)
