"""What a visitor shows, and what came of it."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunnelmux.http.head import Field, RequestHead, field_values
from tunnelmux.proxy.access.rules import Rule
from tunnelmux.pump.cookies import split_own_cookies
from tunnelmux.wire import (
    ACCESS_COOKIE,
    ACCESS_COOKIE_PLAIN,
    ACCESS_FIELD,
    SIGN_IN_COOKIE,
    SIGN_IN_COOKIE_PLAIN,
)

__all__ = ["Asked", "Grant", "Identity", "Pass", "Sender", "basic_login", "cookie_of", "is_here"]


class Sender(NamedTuple):
    """Who sends a request, past trusted proxies, and over what."""

    address: str
    scheme: str = "http"

    @property
    def is_secure(self) -> bool:
        """Whether it came over TLS."""
        return self.scheme == "https"


def is_here(address: str) -> bool:
    """Whether this is an address of this machine only."""
    return address.startswith("127.") or address in {"::1", "::ffff:127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a visitor is, as a service is told."""

    kind: Literal["anonymous", "person", "user", "link", "program"]
    name: str = ""
    """What `Tunnelmux-User` says: of a person the id, of others the name in the rule."""
    email: str = ""
    roles: tuple[str, ...] = ()
    display_name: str = ""


ANONYMOUS = Identity("anonymous")


class Grant:
    """What may end while it is in use: a person's session, or a link."""

    __slots__ = (
        "email",
        "ends",
        "id",
        "is_living",
        "kind",
        "name",
        "roles",
        "used",
        "user_id",
        "version",
    )

    def __init__(self, kind: Literal["session", "link"], grant_id: str) -> None:
        self.kind = kind
        self.id = grant_id
        self.is_living = True
        self.version = 0
        """Grows with each change of what it is worth: passes made before are not good any more."""
        self.ends = math.inf
        """Unix time."""
        self.user_id = ""
        self.name = ""
        self.email = ""
        self.roles: Mapping[str, str] = {}
        """Of a session: the person's role, by the name of the tenant."""
        self.used = True
        """Whether a visitor came by it since the registry was last told."""


@dataclass(slots=True, eq=False)
class Pass:
    """That a visitor is let in: for one service, until a time."""

    rule: Rule
    identity: Identity = ANONYMOUS
    grant: Grant | None = None
    until: float = math.inf
    """Unix time after which it has to be judged again."""
    version: int = 0
    """The grant's, when it was judged."""
    renew_at: float = math.inf
    """Unix time from which on a request gets a cookie that lasts longer."""
    fresh_until: float = math.inf
    """Unix time after which what services are told of it has to be made anew."""
    by: Literal["public", "cookie", "basic", "token", "preflight"] = "public"
    lease: str = ""
    """The id of the lease it is under; empty for none."""

    @property
    def by_cookie(self) -> bool:
        """Whether a browser sends the proof by itself, also when another site makes it."""
        return self.by == "cookie"

    @property
    def takes_login(self) -> bool:
        """Whether `Authorization` was meant for us, and is nothing for the service."""
        return self.by == "basic"

    def is_good(self, now: float) -> bool:
        """Whether it still holds."""
        grant = self.grant
        return self.until > now and (
            grant is None or (grant.is_living and grant.version == self.version)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as it matters here."""

    request: RequestHead
    sender: Sender
    cookie: bytes = b""
    """The pair `name=value` of our own access cookie; empty where there is none, or more."""
    login: bytes = b""
    """The value of `Authorization`."""
    token: bytes = b""
    """The value of `Tunnelmux-Access`."""
    sign_in: str = ""
    """The value of the cookie that a browser gets before it is sent to sign in."""

    @classmethod
    def of(cls, request: RequestHead, sender: Sender) -> Asked:
        """What this request shows. What is there twice counts as nothing."""
        values = [value for name, value in request.headers if name.lower() == b"cookie"]
        pairs = [pair for value in values for pair in split_own_cookies(value)[1]]
        names = {ACCESS_COOKIE, ACCESS_COOKIE_PLAIN}
        cookies = [pair for pair in pairs if pair.partition(b"=")[0] in names]
        begun = [
            value
            for name, _, value in (pair.partition(b"=") for pair in pairs)
            if name == (SIGN_IN_COOKIE if sender.is_secure else SIGN_IN_COOKIE_PLAIN)
        ]
        return cls(
            request,
            sender,
            cookie=cookies[0] if len(cookies) == 1 else b"",
            login=_only(request.headers, b"authorization"),
            token=_only(request.headers, ACCESS_FIELD.lower()),
            sign_in=begun[0].decode("latin-1") if len(begun) == 1 else "",
        )

    @property
    def is_safe(self) -> bool:
        """Whether the request is one that only looks (RFC 9110 9.2.1), and opens no channel."""
        return self.request.method in {b"GET", b"HEAD", b"OPTIONS"} and not self.has(b"upgrade")

    @property
    def is_from_elsewhere(self) -> bool:
        """Whether another site's page may have made the browser send it. Pages of other devices
        are such: they count as the same site, and their requests carry the cookie."""
        site = self.first(b"sec-fetch-site")
        if site is not None:
            return site not in {b"same-origin", b"none"}
        origin = self.first(b"origin")
        return (
            origin is not None and origin.partition(b"://")[2].lower() != self.request.host.lower()
        )

    @property
    def crosses(self) -> bool:
        """Whether it may change something, and be another site's doing."""
        return not self.is_safe and self.is_from_elsewhere

    @property
    def is_preflight(self) -> bool:
        """Whether it is a CORS preflight (Fetch Standard, 3.3)."""
        return (
            self.request.method == b"OPTIONS"
            and self.has(b"origin")
            and self.has(b"access-control-request-method")
        )

    @property
    def is_navigation(self) -> bool:
        """Whether a person looks at what comes: then a page is of use, and a redirect."""
        mode = self.first(b"sec-fetch-mode")
        return (
            self.request.method in {b"GET", b"HEAD"}
            and b"text/html" in b",".join(field_values(self.request.headers, b"accept")).lower()
            and mode in {None, b"navigate"}
            and not self.has(b"upgrade")
        )

    def has(self, name: bytes) -> bool:
        """Whether there is such a field, by its name in small letters."""
        return self.first(name) is not None

    def first(self, name: bytes) -> bytes | None:
        """The first value of a field, by its name in small letters."""
        return next((value for key, value in self.request.headers if key.lower() == name), None)


def cookie_of(pair: bytes, sender: Sender) -> str | None:
    """The value of our access cookie, if it came under the name that holds for this sender: the
    one that a browser takes over HTTPS only; without TLS the other one, on this machine only."""
    name, _, value = pair.partition(b"=")
    if sender.is_secure:
        wanted = ACCESS_COOKIE
    elif is_here(sender.address):
        wanted = ACCESS_COOKIE_PLAIN
    else:
        return None
    return value.decode("latin-1") if name == wanted else None


def basic_login(value: bytes) -> tuple[str, bytes] | None:
    """Name and password of an `Authorization` value (RFC 7617); None when it has none."""
    scheme, _, text = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(text.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _only(headers: list[Field], name: bytes) -> bytes:
    values = [value for key, value in headers if key.lower() == name]
    return values[0] if len(values) == 1 else b""
