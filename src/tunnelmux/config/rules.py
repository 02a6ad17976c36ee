"""Checks of single values. Every error is a sentence for the person who wrote the value."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from tunnelmux.errors import ConfigError

__all__ = [
    "DOMAIN_LABEL",
    "Address",
    "InvalidSetting",
    "MissingSetting",
    "Target",
    "check_api_key",
    "check_fingerprint",
    "check_label",
    "check_network",
    "check_one_line",
    "check_token",
    "check_unique",
    "is_loopback",
    "parse_address",
    "parse_pin",
    "parse_target",
    "split_url",
]

DOMAIN_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# The characters of names, of IPv4 and IPv6 addresses, and of a zone after "%" (RFC 4007).
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")
# RFC 6750 section 2.1, b64token: what an Authorization header can carry unquoted.
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


class InvalidSetting(ConfigError, ValueError):
    """One setting has a value that cannot be used.

    `key` is its name inside its table; the loader puts the file and the table in front. A
    ValueError as well, because that is how msgspec lets a constructor refuse.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


class MissingSetting(InvalidSetting):
    """A setting that must be there is not."""


class Address(NamedTuple):
    """Where to listen or to connect: a host name or IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(key: str, value: str) -> Address:
    """`host:port` or `[ipv6]:port` as an Address; port 0 lets the system choose."""
    example = 'write it as "host:port", for example "127.0.0.1:8080" or "[::1]:8080"'
    host, colon, port_text = value.rpartition(":")
    if "://" in value:
        raise InvalidSetting(key, f'"{value}" is a URL, and this is an address: {example}')
    if not colon and value.isascii() and value.isdigit():
        raise InvalidSetting(
            key,
            f'"{value}" has no host: write "127.0.0.1:{value}" for programs of this machine, '
            f'"0.0.0.0:{value}" for every IPv4 address',
        )
    if not colon:
        raise InvalidSetting(key, f'"{value}" has no port: {example}')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidSetting(key, f'"{value}" needs brackets around its IPv6 address: {example}')
    if not host:
        raise InvalidSetting(
            key, f'"{value}" has no host: write "0.0.0.0:{port_text}" for every IPv4 address'
        )
    if not _HOST.fullmatch(host):
        raise InvalidSetting(key, f"{host!r} is neither a host name nor an address: {example}")
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    if not is_number or int(port_text) > 65535:
        raise InvalidSetting(key, f'"{port_text}" is not a port from 0 to 65535: {example}')
    return Address(host, int(port_text))


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a listener on this host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to any address


def names_this_machine(authority: str) -> bool:
    """Whether a Host field's value, with a port or without, is a loopback address or localhost.

    Another name may lead here because its owner wants that (DNS rebinding): a browser then takes
    this machine for the site of a page that it shows.
    """
    host = authority.rpartition("@")[2]
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)


def check_label(key: str, value: str) -> None:
    """Refuse a device or service name that cannot be one label of a host name."""
    if not DOMAIN_LABEL.fullmatch(value):
        raise InvalidSetting(
            key,
            f'"{value}" cannot be part of a host name: use 1 to 63 of a-z, 0-9 and "-", '
            'with no "-" at either end',
        )
    if "--" in value:
        raise InvalidSetting(
            key,
            f'"{value}" contains "--", which separates service and device in a host name such '
            'as "web--dev1.localhost": use a single "-"',
        )


def check_unique(key: str, values: list[str]) -> None:
    """Refuse a name that is used twice in one list of tables."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidSetting(key, f'"{value}" is there twice: give each a name of its own')
        seen.add(value)


def check_network(key: str, value: str) -> None:
    """Refuse what is not an IP address or a CIDR network."""
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise InvalidSetting(
            key, f'{error}: write a network such as "10.0.0.0/8" or an address such as "192.0.2.7"'
        ) from None


def check_token(key: str, token: str) -> None:
    """Refuse a token that an Authorization field cannot carry. The message does not show it."""
    if not token:
        raise InvalidSetting(key, "is empty: put the device's token there")
    if not _BEARER_TOKEN.fullmatch(token):
        raise InvalidSetting(
            key,
            "holds a character that a token cannot have: use letters, digits and "
            '"-._~+/" (a quoted or broken line is the usual cause)',
        )


def check_api_key(key: str, text: str) -> None:
    """Refuse an API key that is empty or not one line of ASCII. The message does not show it."""
    if not text:
        raise InvalidSetting(key, "is empty: set the key that the main server knows")
    if not text.isascii() or not text.isprintable():
        raise InvalidSetting(key, "must be one line of printable ASCII characters")


def check_one_line(key: str, text: str) -> None:
    """Refuse what is not one line of printable ASCII. The message does not show it."""
    if not text or not text.isascii() or not text.isprintable():
        raise InvalidSetting(key, "must be one line of printable ASCII characters")


def check_fingerprint(key: str, value: str, prefix: str = "") -> None:
    """Refuse what is not `prefix` and the 64 lower-case hexadecimal digits of a SHA-256."""
    if not value.startswith(prefix) or not _HEX_SHA256.fullmatch(value.removeprefix(prefix)):
        raise InvalidSetting(
            key, f"must be {prefix + ' and ' if prefix else ''}64 hexadecimal digits, lower case"
        )


_PIN = re.compile(r"(?:sha-?256(?::|\s+fingerprint\s*=))?\s*((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})")


def parse_pin(key: str, value: str) -> str:
    """A certificate's fingerprint in its canonical spelling, `sha256:` and 64 lower-case digits.

    Accepts that, and the output of `openssl x509 -fingerprint -sha256` prints: colons between the
    digits, capitals, and `sha256 Fingerprint=` in front. Raises InvalidSetting.
    """
    match = _PIN.fullmatch(value.strip().lower())
    if match is None:
        raise InvalidSetting(
            key,
            "is not the SHA-256 of a certificate, 64 hexadecimal digits: the proxy prints its pin "
            "when it starts, or take what this prints: "
            "openssl x509 -in CERTIFICATE -noout -fingerprint -sha256",
        )
    return "sha256:" + match[1].replace(":", "")


def split_url(key: str, value: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """A URL in its parts, refused unless its scheme is one of `schemes` and it names a host."""
    wanted = f'write it as "{example}"'
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidSetting(key, f"has a space or another odd character in it: {wanted}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        # There may be a password before an "@".
        shown = "" if "@" in value else f'"{value}" '
        raise InvalidSetting(key, f"{shown}is not a URL ({error}): {wanted}") from None
    if parts.username is not None or parts.password is not None:
        # Checked before any error that shows the value: there may be a password in it.
        raise InvalidSetting(key, f"must not hold a user name or a password: {wanted}")
    if parts.scheme not in schemes:
        allowed = ", ".join(f"{scheme}://" for scheme in schemes)
        raise InvalidSetting(key, f'"{value}" does not begin with one of {allowed}: {wanted}')
    if not parts.hostname:
        raise InvalidSetting(key, f'"{value}" names no host: {wanted}')
    if port == 0:
        raise InvalidSetting(key, f'"{value}" has port 0: {wanted}')
    return parts


class Target(NamedTuple):
    """The address or Unix socket of a local program that visitors reach."""

    protocol: Literal["http", "tcp"]
    """The protocol that visitors speak with it."""

    address: Address | None
    path: str | None = None
    is_encrypted: bool = False
    """Whether HTTP with it uses TLS."""

    @property
    def scheme(self) -> Literal["http", "https", "tcp"]:
        """`protocol`, as in the URLs of the target's own site."""
        return "https" if self.is_encrypted else self.protocol


_UNIX_SCHEMES: dict[str, Literal["http", "tcp"]] = {"unix:": "http", "tcp+unix:": "tcp"}
_SSH_PORT = 22
_MAX_UNIX_PATH = 107  # bytes of a path in sockaddr_un on Linux, unix(7)


@lru_cache(maxsize=1024)  # asked for with every request
def parse_target(key: str, value: str) -> Target:
    """A service's target, from its URL, the path of its Unix socket, or the port of a web server on
    this machine."""
    if value.isascii() and value.isdigit():
        return Target("http", Address("127.0.0.1", _check_web_port(key, value)))
    for scheme, protocol in _UNIX_SCHEMES.items():
        if value.startswith(scheme):
            return Target(protocol, None, _check_unix_path(key, value, scheme))
    scheme = value.partition("://")[0]
    if scheme not in _TARGET_EXAMPLES:
        raise InvalidSetting(key, _say_scheme(value))
    parts = split_url(key, value, (scheme,), _TARGET_EXAMPLES[scheme])
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidSetting(
            key,
            f'"{value}" has a path, and a visitor\'s path is passed on as it is: end the target '
            "after the port",
        )
    if parts.port is None and scheme == "tcp":
        raise InvalidSetting(key, f'"{value}" has no port: write it as "{_TARGET_EXAMPLES["tcp"]}"')
    assert parts.hostname is not None  # split_url refuses a URL without a host
    if scheme == "tcp":
        return Target("tcp", Address(parts.hostname, parts.port or 0))
    is_encrypted = scheme == "https"
    address = Address(parts.hostname, parts.port or (443 if is_encrypted else 80))
    return Target("http", address, is_encrypted=is_encrypted)


_TARGET_EXAMPLES = {
    "http": "http://127.0.0.1:8000",
    "https": "https://192.168.1.1",
    "tcp": "tcp://127.0.0.1:22",
}
_OTHER_SCHEMES = {
    "ws": "write http:// in its place, which takes WebSockets as well",
    "wss": "write https:// in its place, which takes WebSockets as well",
    "ssh": "write tcp:// and the port, such as tcp://127.0.0.1:22",
    "udp": "UDP cannot be passed on; use http://, https://, tcp://, unix:/path or tcp+unix:/path",
}
"""What to write for schemes that people try."""


def _say_scheme(value: str) -> str:
    """What to write for a target without a scheme, or with one that is none of a target's."""
    scheme, separator, _ = value.partition("://")
    if separator:
        other = "use http://, https://, tcp://, unix:/path or tcp+unix:/path"
        # Only the scheme is shown: there may be a password behind it.
        return f'"{scheme}://" is no scheme of a target: {_OTHER_SCHEMES.get(scheme, other)}'
    if not value.isascii() or not value.isprintable() or set(value) & set(" @?#"):
        return (
            'is no target: write it like "http://127.0.0.1:8000", "tcp://127.0.0.1:22" or '
            '"unix:/run/app.sock"'
        )
    if value.startswith(("/", ".", "~")):
        path = value if value.startswith("/") else "/path"
        return (
            f'"{value}" has no scheme: write "unix:{path}" for HTTP at a Unix socket, '
            f'"tcp+unix:{path}" for anything else there'
        )
    host, _, path = value.partition("/")
    where = host if ":" in host else f"{host or '127.0.0.1'}:8000"
    return (
        f'"{value}" has no scheme: write "http://{where}" for a web server, "tcp://{where}" for '
        'anything else, or "unix:/path" for a Unix socket'
    )


def _check_web_port(key: str, value: str) -> int:
    port = int(value) if len(value) <= len("65535") else 0
    if not 0 < port <= 65_535:
        raise InvalidSetting(
            key,
            f'"{value[:20]}" is not a port from 1 to 65535: write the one at which the web server '
            'listens, such as "8000"',
        )
    if port == _SSH_PORT:
        raise InvalidSetting(
            key, f'"{value}" alone stands for HTTP: write "tcp://127.0.0.1:{value}" for SSH'
        )
    return port


def _check_unix_path(key: str, value: str, scheme: str) -> str:
    path = value.removeprefix(scheme)
    wanted = f'write it as "{scheme}/run/app.sock"'
    if not path.startswith("/") or path.startswith("//"):
        raise InvalidSetting(key, f'"{value}" has no path that begins with one "/": {wanted}')
    if not path.isprintable():
        raise InvalidSetting(key, f"has an odd character in its path: {wanted}")
    if len(path.encode()) > _MAX_UNIX_PATH:
        raise InvalidSetting(
            key, f'"{value}" is too long: the path of a socket has at most {_MAX_UNIX_PATH} bytes'
        )
    return path
