"""The HTTP proxy to dial through: from a setting, or from the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from tunnelmux.config.rules import InvalidSetting
from tunnelmux.config.secret import Secret
from tunnelmux.errors import ConfigError

__all__ = ["HttpProxy", "http_proxy_from_environment", "parse_http_proxy"]

_WANTED = (
    'write it as "http://proxy.example.net:3128", with user:password@ before the host if needed'
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """An HTTP proxy that takes CONNECT (RFC 9110 section 9.3.6)."""

    host: str
    port: int
    is_secure: bool = False
    """Whether the proxy itself is reached over TLS."""
    login: Secret | None = field(default=None, repr=False)
    """`user:password` for Basic authentication (RFC 7617), or None."""

    def __str__(self) -> str:
        """host:port, without the login."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_http_proxy(key: str, text: str) -> HttpProxy:
    """The proxy that a URL names; without a scheme it is `http://`.

    Raises InvalidSetting for `key`, whose message never shows the text: a password may be in it.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise InvalidSetting(key, f"is not a URL: {_WANTED}") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidSetting(
            key, f"is a {parts.scheme}:// proxy, which is not supported: {_WANTED}"
        )
    host = parts.hostname
    if not host or not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or port == 0:
        raise InvalidSetting(key, f"has no valid host: {_WANTED}")
    return HttpProxy(
        host, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "https", _login(key, parts)
    )


def _login(key: str, parts: SplitResult) -> Secret | None:
    if parts.username is None:
        return None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    if ":" in unquote(parts.username) or not login.isprintable():
        # RFC 7617 section 2: the first colon ends the user, and control characters are forbidden.
        raise InvalidSetting(key, "has a user or password with a character that no login can have")
    return Secret(login)


def http_proxy_from_environment(
    url: str, environ: Mapping[str, str], warn: Callable[[str], None] | None = None
) -> Secret | None:
    """The HTTP proxy that the environment sets for `url`, or None.

    As with curl, a name in lower case wins, the scheme's own variable wins over ALL_PROXY, and
    hosts in NO_PROXY are reached directly. A ws:// or http:// URL without HTTP_PROXY goes by
    HTTPS_PROXY, because it goes by CONNECT (RFC 6455 section 4.1). A proxy of an unsupported kind
    is ignored, and `warn` is called with a sentence about it. Raises ConfigError naming the
    variable.
    """
    parts = urlsplit(url)
    secure = parts.scheme in {"https", "wss"}
    scheme_names = ["https_proxy"] if secure else ["http_proxy", "https_proxy"]
    name = next(
        (
            name
            for lower in (*scheme_names, "all_proxy")
            for name in (lower, lower.upper())
            if name in environ
        ),
        None,
    )
    if name is None or not environ[name].strip():
        return None
    port = parts.port or (443 if secure else 80)
    exempt = environ.get("no_proxy", environ.get("NO_PROXY", ""))
    if is_exempt(parts.hostname or "", port, exempt):
        return None
    if re.match(r"socks[0-9a-z]*://", environ[name]):
        if warn is not None:
            warn(f"{name} names a SOCKS proxy, which is not supported: {url} is dialled directly")
        return None
    try:
        parse_http_proxy(name, environ[name])
    except InvalidSetting as error:
        raise ConfigError(str(error)) from None
    return Secret(environ[name])


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether a NO_PROXY list has this host: by a name with all its subdomains, an address, a
    network (`10.0.0.0/8`), one of these with a port, or `*` for all.
    """
    host = host.lower().rstrip(".")
    return any(_matches(host, port, entry) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _matches(host: str, port: int, entry: str) -> bool:
    if entry == "*":
        return True
    entry = entry.lower()
    with_port = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]+):(\d{1,5})", entry)
    if with_port is not None:
        if int(with_port[2]) != port:
            return False
        entry = with_port[1]
    entry = entry.strip("[]").removeprefix("*").strip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bool(entry) and (host == entry or host.endswith(f".{entry}"))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
