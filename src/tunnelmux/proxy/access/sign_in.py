"""Sign-in at tunnelmux-api and by links: from the first redirect to the cookie.

A browser without a proof is redirected to tunnelmux-api. The redirect carries the requested URL,
signed by this proxy, and the digest of a random value that the browser gets as a cookie. It comes
back with a ticket that is valid for a minute, once, and in that browser only. Then it gets a cookie
for this host and this service, valid for 15 minutes and renewed while the person's session and
rights last. So a ticket that is intercepted, or sent to another person, is useless.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from tunnelmux.access.addresses import AddressLists
from tunnelmux.errors import RegistryError, RegistryRefused
from tunnelmux.http.head import Field, host_name
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import AccessLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.access.decision import decide
from tunnelmux.proxy.access.grants import Grants
from tunnelmux.proxy.access.proofs import (
    Asked,
    Grant,
    Identity,
    Pass,
    Sender,
    cookie_of,
    is_here,
)
from tunnelmux.proxy.access.rules import Rule
from tunnelmux.wire import (
    ACCESS_COOKIE,
    ACCESS_COOKIE_PLAIN,
    SIGN_IN_COOKIE,
    SIGN_IN_COOKIE_PLAIN,
    VISITOR_PATH,
)

if TYPE_CHECKING:
    from tunnelmux.proxy.tunnels.leases import LeaseBook
    from tunnelmux.registry import Lease

__all__ = ["ASSERTION_LIFETIME", "SignIn"]

_log = get_logger("proxy.access")

COOKIE_LIFETIME = 900.0
"""Seconds for which a cookie is valid."""

_RENEW_AFTER = 300.0
# Seconds of age from which on a cookie is renewed.

_NOT_AGAIN = 30.0
# Seconds until a pass whose cookie was or could not be renewed is checked again.

TICKET_LIFETIME = 60.0
"""Seconds for which a ticket is valid."""

ASSERTION_LIFETIME = 60.0
"""Seconds for which an assertion is valid."""

_PERIOD = 60.0
# The period in seconds in which tickets and links of one grant are counted.

_SIGN_IN_TIME = 600
# Seconds for signing in; also the lifetime of the cookie that binds the sign-in to the browser.

_SKEW = 30.0
# Seconds by which the clocks of our programs may differ.

_LONGEST_RETURN = 700
# Bytes of the path that a browser returns to; a longer one becomes "/".

_BEGUN = re.compile(r"[A-Za-z0-9_-]{43}")
_PATH = re.compile(rb"/[\x21-\x7e]*")


class SignIn:
    """The part of the gate for people, links and leases. `grants` are those in use."""

    def __init__(
        self,
        grants: Grants,
        leases: LeaseBook | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.grants = grants
        self._leases = leases
        self._now = now
        self._recent: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def configure(self, limits: AccessLimits) -> None:
        """Use these limits from now on."""
        self.grants.limits = limits

    # -- the cookie -------------------------------------------------------------------------------

    def judge(
        self, rule: Rule, device: str, service: str | None, sender: Sender, cookie: bytes
    ) -> Pass | None:
        """The pass for this cookie, from cached grants; else None."""
        payload = self._read_cookie(cookie, sender)
        if payload is None or (payload["d"], payload["s"]) != (device, service or ""):
            return None
        grant = self.grants.find(payload["k"], payload["g"])
        if grant is None:
            return None
        lease_id = payload.get("l") or ""
        if self.admits(rule, grant, device):
            lease_id = ""
        elif not self.admits(rule, grant, device, lease_id) or not self._is_from(
            lease_id, device, sender
        ):
            return None
        made = payload["t"]
        return Pass(
            rule,
            _identity(rule, grant),
            grant,
            until=min(made + COOKIE_LIFETIME, grant.ends),
            version=grant.version,
            renew_at=made + _RENEW_AFTER,
            by="cookie",
            lease=lease_id,
        )

    async def look_up(self, asked: Asked) -> None:
        """Read the grant of this cookie, if the cookie is ours and valid. Raises Refused where the
        registry is away, because the visitor's rights are not known.
        """
        payload = self._read_cookie(asked.cookie, asked.sender)
        if payload is None:
            await self._with_new_keys(asked.cookie)
            payload = self._read_cookie(asked.cookie, asked.sender)
        if payload is None:
            return
        try:
            await self.grants.look_up(payload["k"], payload["g"])
        except RegistryError as exc:
            raise _away(exc) from exc

    def known_person(
        self, rule: Rule, device: str, service: str | None, asked: Asked
    ) -> Refusal | None:
        """The refusal for a person who is signed in for this service and may not use it. None where
        signing in can help: the person is not signed in, or has a lease that runs by now.
        """
        payload = self._read_cookie(asked.cookie, asked.sender)
        if payload is None or payload["k"] != "session":
            return None
        if (payload["d"], payload["s"]) != (device, service or ""):
            return None
        grant = self.grants.find("session", payload["g"])
        if grant is None or self.lease_for(rule, grant, device, service, asked.sender):
            return None
        return self.denied(rule, grant, device, service, asked.sender)

    def denied(
        self, rule: Rule, grant: Grant, device: str, service: str | None, sender: Sender
    ) -> Refusal:
        """The message for a person who has signed in and may not use the service: a member, by
        which rule; all others no more than that."""
        who = grant.email or grant.name or grant.user_id
        message = f"You are signed in as {who}, who may not use this service."
        if "lease" in rule.ways:
            message = (
                f"You are signed in as {who}, and have no lease of this service that runs now: "
                "ask for one (`tunnelmux lease request`), or wait until it begins."
            )
        if rule.tenant in grant.roles:
            message += f" {decide(rule, self, grant, device, service, sender).reason}"
        return Refusal(403, "access-denied", message)

    def admits(self, rule: Rule, grant: Grant, device: str, lease_id: str = "") -> bool:
        """Whether this rule admits the holder of this grant, under the named lease if any."""
        if grant.kind == "link":
            return bool({"login", "link"} & rule.ways)
        role = grant.roles.get(rule.tenant)
        if not lease_id or role is None:
            return "login" in rule.ways and rule.admits_member(grant.user_id, role)
        return "lease" in rule.ways and self.lease_goes_on(lease_id, device)

    def lease_goes_on(self, lease_id: str, device: str) -> bool:
        """Whether this lease of the device has not ended, by this proxy's clock."""
        return self._leases is not None and self._leases.goes_on(lease_id, device) is not None

    def _is_from(self, lease_id: str, device: str, sender: Sender) -> bool:
        lease = self._leases.goes_on(lease_id, device) if self._leases is not None else None
        return lease is not None and AddressLists(lease.addresses).admit(sender.address)

    def lease_for(
        self, rule: Rule, grant: Grant, device: str, service: str | None, sender: Sender | None
    ) -> Lease | None:
        """The lease by which this person may use the service now: the one that ends last. Without
        a sender, from an address that it is good for."""
        if self._leases is None or "lease" not in rule.ways or rule.tenant not in grant.roles:
            return None
        found = [
            lease
            for lease in self._leases.running_for(grant.user_id, device)
            if service in lease.services
            and (sender is None or AddressLists(lease.addresses).admit(sender.address))
        ]
        return max(found, key=lambda lease: lease.ends, default=None)

    def renewed(self, found: Pass, device: str, service: str | None, asked: Asked) -> list[Field]:
        """The field that renews the cookie; none while the registry is away."""
        found.renew_at = self._now() + _NOT_AGAIN
        if found.grant is None or not self.grants.is_up_to_date:
            return []
        return [self._cookie(found.grant, device, service, asked.sender, found.lease)]

    def assertion(self, found: Pass, host: bytes) -> str:
        """A JWT with the visitor's identity, for services that want it signed."""
        now, identity = self._now(), found.identity
        claims = {
            "iss": "tunnelmux-proxy",
            "aud": host.decode("latin-1").lower(),
            "sub": identity.name,
            "kind": identity.kind,
            "email": identity.email,
            "name": identity.display_name,
            "roles": list(identity.roles),
            "iat": int(now),
            "exp": int(now + ASSERTION_LIFETIME),
        }
        return self.grants.signer.jwt(claims)

    # -- signing in -------------------------------------------------------------------------------

    def begin(self, rule: Rule, device: str, service: str | None, asked: Asked) -> Refusal:
        """Refuse with a redirect to the sign-in."""
        if not self.grants.sign_in_url:
            message = (
                "This service is for people who sign in, and no tunnelmux-api has said where: "
                "start it with the registry of this proxy, and try again."
            )
            return Refusal(503, "registry-away", message, retry_after=5)
        if not (asked.sender.is_secure or is_here(asked.sender.address)):
            message = "People sign in over https:// only; this came over http://."
            return Refusal(403, "access-denied", message)
        if not _is_returned_to(asked):
            label = f"{service}--{device}" if service else device
            message = (
                f"People sign in under the service's own host, {label}.DOMAIN with the domain of "
                "[ingress.http]: a ticket must not go to any address that a request names."
            )
            return Refusal(403, "access-denied", message)
        # Several tabs may sign in at once, and share one value.
        begun = asked.sign_in if _BEGUN.fullmatch(asked.sign_in) else secrets.token_urlsafe(32)
        target = asked.request.target
        if len(target) > _LONGEST_RETURN or not _PATH.fullmatch(target):
            target = b"/"
        origin = f"{asked.sender.scheme}://{asked.request.host.decode('ascii')}"
        text = self.grants.signer.sign(
            "asked",
            {
                "d": device,
                "s": service or "",
                "n": rule.tenant,
                "o": origin,
                "p": target.decode("ascii"),
                "b": _digest(begun),
                "t": self._now(),
            },
        )
        location = f"{self.grants.sign_in_url}/api/access/sign-in?asked={text}"
        name, flags = _named(SIGN_IN_COOKIE, SIGN_IN_COOKIE_PLAIN, asked.sender)
        cookie = name + f"={begun}; Max-Age={_SIGN_IN_TIME}{flags}".encode("ascii")
        return Refusal(
            302,
            "access-unproven",
            "This service is for people who sign in.",
            headers=[(b"Location", location.encode("ascii")), (b"Set-Cookie", cookie)],
        )

    async def answer(self, rule: Rule, device: str, service: str | None, asked: Asked) -> None:
        """Answer a request for the proxy itself by raising Refused; return for all
        other requests."""
        if not {"login", "link", "lease"} & rule.ways:
            return
        path, _, query = asked.request.target.partition(b"?")
        kind = path[len(VISITOR_PATH) :].decode("latin-1")
        if kind not in {"ticket", "link"}:
            raise Refused(Refusal(404, "unknown-service", "The proxy has no such page here."))
        methods = [b"GET"] if kind == "ticket" else [b"GET", b"POST"]
        if asked.request.method not in methods:
            # Programs that check links in mail use HEAD, which must not use a link up.
            allowed = [(b"Allow", b", ".join(methods))]
            raise Refused(Refusal(405, "bad-request", "Open it in a browser.", headers=allowed))
        values = parse_qs(query.decode("ascii", "replace")).get(kind, [])
        text = values[0] if len(values) == 1 else ""
        await self._with_new_keys(text.encode("ascii", "replace"))
        if not (asked.sender.is_secure or is_here(asked.sender.address)):
            message = "Links and sign-ins work over https:// only; this came over http://."
            raise Refused(Refusal(403, "access-denied", message))
        if kind == "ticket":
            await self._take_ticket(rule, device, service, asked, text)
        await self._take_link(rule, device, service, asked, text)

    async def _take_ticket(
        self, rule: Rule, device: str, service: str | None, asked: Asked, text: str
    ) -> None:
        ticket = _fields(self.grants.keys.read("ticket", text), "jdsgbop", "t")
        here = f"{asked.sender.scheme}://{asked.request.host.decode('ascii')}"
        if ticket is None or (ticket["d"], ticket["s"], ticket["o"]) != (
            device,
            service or "",
            here,
        ):
            raise _refused("This ticket is not for this service")
        if not -_SKEW <= self._now() - ticket["t"] < TICKET_LIFETIME:
            raise _refused("This ticket has expired")
        if not asked.sign_in or not secrets.compare_digest(_digest(asked.sign_in), ticket["b"]):
            raise _refused("This browser began no such sign-in, or keeps no cookies")
        self._count("session", ticket["g"])
        try:
            is_new = await self.grants.redeem_ticket(
                ticket["j"], ticket["t"] + TICKET_LIFETIME + _SKEW
            )
            if not is_new:
                raise _refused("This ticket was used already")
            await self.grants.look_up("session", ticket["g"])
        except RegistryError as exc:
            raise _away(exc) from exc
        grant = self.grants.find("session", ticket["g"])
        if grant is None:
            raise _refused("The session has ended")
        lease_id = ""
        if not self.admits(rule, grant, device):
            lease = self.lease_for(rule, grant, device, service, asked.sender)
            if lease is None:
                raise Refused(self.denied(rule, grant, device, service, asked.sender))
            await self._use_lease(lease, service, asked)
            lease_id = lease.id
        more = {"lease": lease_id} if lease_id else {}
        what = {"device": device, "service": service or "", "user": grant.user_id}
        _log.info("visitor signed in", **what, **more)
        self._let_in(grant, device, service, asked, ticket["p"], lease_id)

    async def _use_lease(self, lease: Lease, service: str | None, asked: Asked) -> None:
        """Count a use of the lease, for the audit: one browser that was admitted."""
        details: dict[str, object] = {"what": "browser", "service": service}
        try:
            await self.grants.use_lease(lease, asked.sender.address, details)
        except RegistryRefused as exc:
            raise _refused(f"Your lease does not run any more ({exc})") from exc
        except RegistryError as exc:
            raise _away(exc) from exc

    async def _take_link(
        self, rule: Rule, device: str, service: str | None, asked: Asked, text: str
    ) -> None:
        link = _fields(self.grants.keys.read("link", text), "jds", "e")
        if link is None or (link["d"], link["s"]) != (device, service or ""):
            raise _refused("This is no link to this service")
        if "link" not in rule.ways and "login" not in rule.ways:
            raise _refused("This service takes no links")
        if link["e"] <= self._now():
            raise _refused("This link is over: ask for another one")
        if link.get("o") and asked.request.method == b"GET":
            raise Refused(_unopened())
        self._count("link", link["j"])
        try:
            if not await self.grants.redeem_link(link["j"], device, service or ""):
                raise _refused("This link was used already, or taken back: ask for another one")
            await self.grants.look_up("link", link["j"])
        except RegistryError as exc:
            raise _away(exc) from exc
        grant = self.grants.find("link", link["j"])
        if grant is None:
            raise _refused("This link is over: ask for another one")
        _log.info("visitor came by a link", device=device, service=service or "", link=link["j"])
        self._let_in(grant, device, service, asked, "/")

    def _let_in(
        self,
        grant: Grant,
        device: str,
        service: str | None,
        asked: Asked,
        path: str,
        lease_id: str = "",
    ) -> None:
        name, flags = _named(SIGN_IN_COOKIE, SIGN_IN_COOKIE_PLAIN, asked.sender)
        # An absolute URL: a path that begins with two slashes would name another host.
        host = asked.request.host.decode("ascii")
        location = f"{asked.sender.scheme}://{host}{quote(path, safe=_SAFE)}"
        raise Refused(
            Refusal(
                303,
                "access-proven",
                "Come in.",
                headers=[
                    (b"Location", location.encode("ascii")),
                    self._cookie(grant, device, service, asked.sender, lease_id),
                    (b"Set-Cookie", name + f"=; Max-Age=0{flags}".encode("ascii")),
                    (b"Referrer-Policy", b"no-referrer"),
                ],
            )
        )

    def _count(self, kind: str, grant_id: str) -> None:
        """Count one more ticket or link of this grant; raises Refused over the limit."""
        key, now = f"{kind} {grant_id}", self._now()
        since, count = self._recent.get(key, (now, 0))
        if not 0 <= now - since < _PERIOD:
            since, count = now, 0
        if count >= self.grants.limits.access_max_sign_ins:
            message = (
                f"This was opened {count} times within a minute (limits.access_max_sign_ins): wait "
                "a moment."
            )
            wait = max(1, round(since + _PERIOD - now))
            raise Refused(Refusal(429, "too-many-guesses", message, retry_after=wait))
        self._recent[key] = since, count + 1
        self._recent.move_to_end(key)
        if len(self._recent) > self.grants.limits.access_max_grants:
            self._recent.popitem(last=False)

    # -- pieces -----------------------------------------------------------------------------------

    def _cookie(
        self, grant: Grant, device: str, service: str | None, sender: Sender, lease_id: str = ""
    ) -> Field:
        now = self._now()
        payload = {"k": grant.kind, "g": grant.id, "d": device, "s": service or "", "t": now}
        if lease_id:
            payload["l"] = lease_id
        text = self.grants.signer.sign("cookie", payload)
        name, flags = _named(ACCESS_COOKIE, ACCESS_COOKIE_PLAIN, sender)
        age = max(0, int(min(COOKIE_LIFETIME, grant.ends - now)))
        return b"Set-Cookie", name + f"={text}; Max-Age={age}{flags}".encode("ascii")

    def _read_cookie(self, cookie: bytes, sender: Sender) -> dict[str, Any] | None:
        text = cookie_of(cookie, sender)
        payload = _fields(self.grants.keys.read("cookie", text), "kgds", "t") if text else None
        if payload is None or not isinstance(payload.get("l", ""), str):
            return None
        if not -_SKEW <= self._now() - payload["t"] < COOKIE_LIFETIME:
            return None
        return payload

    async def _with_new_keys(self, text: bytes) -> None:
        """Read the keys again where this text's key is unknown: a program may just have started."""
        parts = text.rpartition(b"=")[2].split(b".")
        if len(parts) != 4 or self.grants.knows_key(parts[1].decode("latin-1")):
            return
        try:
            await self.grants.read_keys()
        except RegistryError as exc:
            raise _away(exc) from exc


_SAFE = "/?#[]@!$&'()*+,;=:%-._~"


def _identity(rule: Rule, grant: Grant) -> Identity:
    """The identity of the visitor with this grant, which the rule admits."""
    if grant.kind == "link":
        return Identity("link", grant.name)
    roles = (grant.roles[rule.tenant],)
    return Identity("person", grant.user_id, grant.email, roles, grant.name)


def _is_returned_to(asked: Asked) -> bool:
    """Whether a ticket may be sent to the host of this request. An address, or a name without a
    dot, may belong to a stranger, who begins a sign-in there and has another person finish it: the
    stranger would get that person's ticket. All other hosts are those of the ingress.
    """
    name = host_name(asked.request.host)
    try:
        is_loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        if "." in name:
            return True
        is_loopback = name == "localhost"
    return is_loopback and is_here(asked.sender.address)


def _named(secure: bytes, plain: bytes, sender: Sender) -> tuple[bytes, str]:
    """A cookie's name for this sender, and its attributes."""
    if sender.is_secure:
        return secure, "; Path=/; Secure; HttpOnly; SameSite=Lax"
    return plain, "; Path=/; HttpOnly; SameSite=Lax"


def _fields(payload: dict[str, Any] | None, texts: str, number: str) -> dict[str, Any] | None:
    """The payload, if it has these text fields and this number field."""
    if payload is None or not all(isinstance(payload.get(key), str) for key in texts):
        return None
    value = payload.get(number)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return payload if is_number else None


def _digest(begun: str) -> str:
    return hashlib.sha256(begun.encode("utf-8", "replace")).hexdigest()


def _unopened() -> Refusal:
    """The page of a link that works once. Chat programs and mail filters open links by GET, some
    with a browser: only the button (a POST) uses the link up.
    """
    message = "It lets in one browser, once. Open it in the one that you want to use."
    return Refusal(200, "link-unopened", message, button="Open the service")


def _refused(problem: str) -> Refused:
    message = f"{problem}. Open the service again to get a new one."
    return Refused(Refusal(403, "access-denied", message))


def _away(error: RegistryError) -> Refused:
    message = f"It cannot be known at the moment whether you may come in: {error}. Try again soon."
    return Refused(Refusal(503, "registry-away", message, retry_after=5))
