"""The proofs in a visitor's request, and the results of checking them."""

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
    """The sender of a request as seen past trusted proxies: its address and scheme."""

    address: str
    scheme: str = "http"

    @property
    def is_secure(self) -> bool:
        """Whether it came over TLS."""
        return self.scheme == "https"


def is_here(address: str) -> bool:
    """Whether the request came over loopback."""
    return address.startswith("127.") or address in {"::1", "::ffff:127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Identity:
    """A visitor's identity, as the service is told it."""

    kind: Literal["anonymous", "person", "user", "link", "program"]
    name: str = ""
    """The value of `Tunnelmux-User`: a person's id; for others, the name in the rule."""
    email: str = ""
    roles: tuple[str, ...] = ()
    display_name: str = ""


ANONYMOUS = Identity("anonymous")


class Grant:
    """A permission that can end while it is in use: a person's session, or a link."""

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
        """Grows with each change of its rights, which makes older passes invalid."""
        self.ends = math.inf
        """Unix time."""
        self.user_id = ""
        self.name = ""
        self.email = ""
        self.roles: Mapping[str, str] = {}
        """For a session: the person's role, by the name of the tenant."""
        self.used = True
        """Whether it was used since the last report to the registry."""


@dataclass(slots=True, eq=False)
class Pass:
    """Admits a visitor to one service until a certain time."""

    rule: Rule
    identity: Identity = ANONYMOUS
    grant: Grant | None = None
    until: float = math.inf
    """Unix time after which access has to be checked again."""
    version: int = 0
    """The grant's version at the time of the decision."""
    renew_at: float = math.inf
    """Unix time from which on a request gets a renewed cookie."""
    fresh_until: float = math.inf
    """Unix time after which the identity fields for services have to be made again."""
    by: Literal["public", "cookie", "basic", "token", "preflight"] = "public"
    lease: str = ""
    """The id of the lease it depends on; empty for none."""

    @property
    def is_automatic(self) -> bool:
        """Whether browsers send the proof automatically, even for requests that another site
        causes: a cookie, and a password that the person has entered before.
        """
        return self.by in {"cookie", "basic"}

    @property
    def takes_login(self) -> bool:
        """Whether `Authorization` was for the proxy, and must not go to the service."""
        return self.by == "basic"

    def is_good(self, now: float) -> bool:
        """Whether the pass is still valid."""
        grant = self.grant
        return self.until > now and (
            grant is None or (grant.is_living and grant.version == self.version)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a request that access control needs."""

    request: RequestHead
    sender: Sender
    cookie: bytes = b""
    """The pair `name=value` of our access cookie; empty where there is none, or more than one."""
    login: bytes = b""
    """The value of `Authorization`."""
    token: bytes = b""
    """The value of `Tunnelmux-Access`."""
    sign_in: str = ""
    """The value of the cookie that binds a sign-in to its browser."""

    @classmethod
    def of(cls, request: RequestHead, sender: Sender) -> Asked:
        """The proofs in this request. A proof that is there twice counts as absent."""
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
        """Whether the method is safe (RFC 9110 section 9.2.1), and the request is no upgrade."""
        return self.request.method in {b"GET", b"HEAD", b"OPTIONS"} and not self.has(b"upgrade")

    @property
    def is_from_elsewhere(self) -> bool:
        """Whether a page of another origin may have caused the request. Pages of other devices
        count: they are the same site, so their requests carry the cookie.
        """
        site = self.first(b"sec-fetch-site")
        if site is not None:
            return site not in {b"same-origin", b"none"}
        origin = self.first(b"origin")
        return (
            origin is not None and origin.partition(b"://")[2].lower() != self.request.host.lower()
        )

    @property
    def crosses(self) -> bool:
        """Whether another origin may have caused it, and no person who followed a link. It may
        change state (CSRF), which devices do by GET too, or show the service in another's page.
        """
        return self.is_from_elsewhere and not (self.is_safe and self.is_opened)

    @property
    def is_opened(self) -> bool:
        """Whether a browser opens it as a page in a tab, not in another page's frame, and not
        ahead of time."""
        is_page = self.first(b"sec-fetch-dest") in {None, b"document"}
        return (
            is_page
            and self.first(b"sec-fetch-mode") == b"navigate"
            and not self.has(b"sec-purpose")
        )

    @property
    def is_preflight(self) -> bool:
        """Whether it is a CORS preflight (Fetch Standard, section 3.3)."""
        return (
            self.request.method == b"OPTIONS"
            and self.has(b"origin")
            and self.has(b"access-control-request-method")
        )

    @property
    def is_navigation(self) -> bool:
        """Whether a person will see the answer, so that it may be a page or a redirect."""
        mode = self.first(b"sec-fetch-mode")
        return (
            self.request.method in {b"GET", b"HEAD"}
            and b"text/html" in b",".join(field_values(self.request.headers, b"accept")).lower()
            and mode in {None, b"navigate"}
            and not self.has(b"upgrade")
        )

    def has(self, name: bytes) -> bool:
        """Whether the request has this field; the name is in lower case."""
        return self.first(name) is not None

    def first(self, name: bytes) -> bytes | None:
        """The first value of a field; the name is in lower case."""
        return next((value for key, value in self.request.headers if key.lower() == name), None)


def cookie_of(pair: bytes, sender: Sender) -> str | None:
    """The value of our access cookie, under the name that applies to this sender: over HTTPS the
    name with the `__Host-` prefix; without TLS the development name, on loopback only.
    """
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
