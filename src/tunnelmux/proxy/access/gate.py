"""The gate: decides by a service's rule whether a visitor's request may go to it.

Verdicts are cached, so a known proof costs one look-up. `find` never waits and never refuses: the
pump calls it, and passes requests without a verdict to `admit`. `admit` may ask the registry or
check a password, and a refusal tells the visitor what to do. Both decide by `_judge`, so `find`
admits nothing that `admit` would refuse.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from tunnelmux.config.access import AccessConfig
from tunnelmux.config.networks import network_of
from tunnelmux.http.head import Field
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import AccessLimits
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.access.decision import decide
from tunnelmux.proxy.access.passwords import PasswordCheck, TooManyGuesses
from tunnelmux.proxy.access.proofs import Asked, Grant, Identity, Pass, Sender, basic_login
from tunnelmux.proxy.access.rules import Rule, RuleBook
from tunnelmux.proxy.access.sign_in import ASSERTION_LIFETIME, SignIn
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.registry.names import tenant_in_label
from tunnelmux.sessions import DeviceStore
from tunnelmux.sessions.decisions import Decision
from tunnelmux.wire import ASSERTION_FIELD, EMAIL_FIELD, ROLES_FIELD, USER_FIELD, VISITOR_PATH

if TYPE_CHECKING:
    from tunnelmux.proxy.visitors.names import Destination
    from tunnelmux.proxy.visitors.visit import Visit

__all__ = ["Admitted", "Gate"]

_log = get_logger("proxy.access")

_PASSWORD_FOR = 600.0
_TOKEN_FOR = 600.0
# Seconds for which a verified password or token is cached.

_LONGEST_PROOF = 4096
# Bytes of a proof; longer ones are not cached.


@dataclass(slots=True)
class Admitted:
    """An admitted request."""

    by: Pass
    set_cookies: list[Field] = field(default_factory=list)
    """Fields for its answer: a renewed cookie, where one is due."""


class Gate:
    """Decides on the requests of all visitors. `now` answers seconds since the epoch."""

    def __init__(
        self,
        devices: DeviceRegister,
        store: DeviceStore,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.rules = RuleBook(devices)
        self.sign_in: SignIn | None = None
        """Sign-in of people and links; None without a registry."""
        self._devices = devices
        self._store = store
        self._now = now
        self._passes: dict[tuple[object, ...], Pass] = {}
        self._passwords = PasswordCheck()
        self._wrong_passwords = RepeatedLines("wrong password")
        self._limits = AccessLimits()

    def configure(
        self, config: AccessConfig, limits: AccessLimits | None = None, *, is_local: bool
    ) -> None:
        """Use these rules and limits from now on."""
        self.rules.configure(config, is_local=is_local)
        self._limits = limits or AccessLimits()
        self._passwords.configure(self._limits)
        if self.sign_in is not None:
            self.sign_in.configure(self._limits)
        self.forget()

    def forget(self) -> None:
        """Drop all cached verdicts, because rules have changed."""
        self.rules.forget()
        self._passes.clear()

    def settled(self, destination: Destination) -> Destination:
        """The destination with its canonical names: a serial number becomes the device's name.
        Where services of the device have rules of their own, the default service is named too, so
        that its own rule applies. Raises Refused where that name is not known.
        """
        device = self._devices.named(destination.device)
        if device != destination.device:
            destination = replace(destination, device=device)
        if destination.service is not None or not self.rules.has_service_rules(device):
            return destination
        handle = self._store.live_device(device)
        name = handle.default_service if handle is not None else ""
        if not name:
            message = (
                f"Services of {device} have rules of their own, and which one is the default is "
                "not known: it is offline, or its agent is an old one. Name the service, by the "
                "host SERVICE--DEVICE.DOMAIN."
            )
            raise Refused(Refusal(403, "access-denied", message))
        return replace(destination, service=name)

    def find(
        self,
        device: str,
        service: str | None,
        sender: Sender,
        cookie: bytes = b"",
        login: bytes = b"",
        token: bytes = b"",
    ) -> Pass | None:
        """The cached pass that admits this request; None where `admit` has to decide."""
        rule = self.rules.find(device, service)
        key = self._key(rule, device, service, sender, cookie, login, token)
        found = self._passes.get(key)
        if (
            found is not None
            and found.rule is rule
            and self._is_good(found, device, now := self._now())
        ):
            if found.fresh_until > now:
                return found
            found = replace(found)
            self._remember(key, found)
            return found
        found = self._judge(rule, device, service, sender, cookie, token)
        if found is not None:
            self._remember(key, found)
        return found

    def may_pass(self, found: Pass, *, crosses: bool) -> bool:
        """Whether a request with this pass can skip `admit`: its cookie is not due for renewal, and
        another site's page did not cause it (`crosses`).
        """
        if not found.is_automatic:
            return True
        return found.renew_at > self._now() and (not crosses or found.rule.said.preflights)

    def identity_fields(self, found: Pass, host: bytes) -> list[Field]:
        """The fields that tell the service about the visitor."""
        identity, said = found.identity, found.rule.said
        values = [
            (USER_FIELD, said.user_field, identity.name),
            (EMAIL_FIELD, said.email_field, identity.email),
            (ROLES_FIELD, said.roles_field, ",".join(identity.roles)),
        ]
        fields = []
        for name, other, text in values:
            if text:
                value = _field_value(text)
                fields.append((name, value))
                if other is not None:
                    fields.append((other.encode("ascii"), value))
        if said.assertion and self.sign_in is not None:
            jwt = self.sign_in.assertion(found, host)
            fields.append((ASSERTION_FIELD, jwt.encode("ascii")))
        return fields

    async def admit(self, device: str, service: str | None, asked: Asked) -> Admitted:
        """Admit the request, or raise Refused with what its visitor has to do."""
        rule = self.rules.find(device, service)
        if not rule.ways:
            message = (
                f"No rule allows visits to {device}: its operator must add one, under [access] in "
                "proxy.toml."
            )
            raise Refused(Refusal(403, "access-denied", message))
        if not rule.addresses.admit(asked.sender.address):
            message = f"This service is not for visitors from {asked.sender.address}."
            raise Refused(Refusal(403, "access-denied", message))
        if self.sign_in is not None and asked.request.target.startswith(VISITOR_PATH):
            await self.sign_in.answer(rule, device, service, asked)
        found = self.find(device, service, asked.sender, asked.cookie, asked.login, asked.token)
        if found is None and asked.cookie and self.sign_in is not None:
            await self.sign_in.look_up(asked)
            found = self.find(device, service, asked.sender, asked.cookie, asked.login, asked.token)
        if found is None and "basic" in rule.ways and asked.login:
            found = await self._check_password(rule, device, service, asked)
        if found is None and rule.said.preflights and asked.is_preflight:
            return Admitted(Pass(rule, by="preflight"))
        if found is None:
            raise Refused(self._refusal(rule, device, service, asked))
        if found.is_automatic and asked.crosses and not rule.said.preflights:
            message = (
                "The request was made by another site's page: this service is for its own. Its "
                "rule can allow others (preflights)."
            )
            raise Refused(Refusal(403, "access-denied", message))
        admitted = Admitted(found)
        if self.sign_in is not None and found.renew_at <= self._now():
            admitted.set_cookies = self.sign_in.renewed(found, device, service, asked)
        return admitted

    def decide(
        self, device: str, service: str | None, grant: Grant, sender: Sender | None = None
    ) -> Decision:
        """Whether the person of this grant may reach the service now, and by which rule: what
        `admit` would do, for a caller who asks about it."""
        rule = self.rules.find(device, service)
        return decide(rule, self.sign_in, grant, device, service, sender)

    def still_admits(self, found: Pass, device: str, service: str | None) -> bool:
        """Whether an admitted visit may go on after a change of rules or grants."""
        rule = self.rules.find(device, service)
        if found.rule is not rule and found.rule.said != rule.said:
            return False
        grant = found.grant
        if grant is None or self.sign_in is None:
            return True
        if not grant.is_living or grant.ends <= self._now():
            return False
        return self.sign_in.admits(rule, grant, device, found.lease)

    def cut_unadmitted(self, visits: Iterable[Visit], grant: Grant | None = None) -> int:
        """End visits that are not allowed any more: those by this grant, or all. Returns
        how many."""
        cut = 0
        for visit in visits:
            by = visit.by
            if by is None or visit.is_idle or (grant is not None and by.grant is not grant):
                continue
            if not self.still_admits(by, visit.asked_for, visit.service):
                visit.cut("its visitor may not use the service any more")
                cut += 1
        return cut

    def _is_good(self, found: Pass, device: str, now: float) -> bool:
        if not found.is_good(now):
            return False
        return not found.lease or (
            self.sign_in is not None and self.sign_in.lease_goes_on(found.lease, device)
        )

    # -- deciding ----------------------------------------------------------------------------------

    def _judge(
        self,
        rule: Rule,
        device: str,
        service: str | None,
        sender: Sender,
        cookie: bytes,
        token: bytes,
    ) -> Pass | None:
        """The pass for the request, as far as it can be decided without waiting."""
        if not rule.addresses.admit(sender.address):
            return None
        if "public" in rule.ways:
            return Pass(rule)
        if token and "token" in rule.ways:
            name = rule.tokens.get(hashlib.sha256(token).hexdigest())
            if name is not None:
                identity = Identity("program", name)
                return Pass(rule, identity, until=self._now() + _TOKEN_FOR, by="token")
        if cookie and self.sign_in is not None:
            return self.sign_in.judge(rule, device, service, sender, cookie)
        return None

    async def _check_password(
        self, rule: Rule, device: str, service: str | None, asked: Asked
    ) -> Pass | None:
        login = basic_login(asked.login)
        if login is None:
            return None
        name, password = login
        address = asked.sender.address
        try:
            right = await self._passwords.check(
                rule.users, name, password, address, tenant_in_label(device)
            )
        except TooManyGuesses as exc:
            message = "Too many wrong passwords came from here: wait a moment."
            refusal = Refusal(429, "too-many-guesses", message, retry_after=exc.retry_after)
            raise Refused(refusal) from None
        if not right:
            if self._wrong_passwords.may_write(network_of(address)):
                about = {"device": device, "service": service or "", "visitor": address}
                _log.warning("wrong password", **about)
            return None
        found = Pass(rule, Identity("user", name), until=self._now() + _PASSWORD_FOR, by="basic")
        shown = asked.sender, asked.cookie, asked.login, asked.token
        self._remember(self._key(rule, device, service, *shown), found)
        return found

    @staticmethod
    def _key(
        rule: Rule,
        device: str,
        service: str | None,
        sender: Sender,
        cookie: bytes,
        login: bytes,
        token: bytes,
    ) -> tuple[object, ...]:
        """The cache key of a pass: everything that the decision depended on."""
        if rule.is_open:
            return (device, service)
        asks = rule.asks_for
        return (
            device,
            service,
            sender,
            cookie if "cookie" in asks else b"",
            login if "login" in asks else b"",
            token if "token" in asks else b"",
        )

    def _remember(self, key: tuple[object, ...], found: Pass) -> None:
        if found.rule.said.assertion:
            found.fresh_until = self._now() + ASSERTION_LIFETIME / 2
        if sum(len(part) for part in key if isinstance(part, bytes)) > _LONGEST_PROOF:
            return
        if len(self._passes) >= self._limits.access_max_passes:
            self._passes.clear()
        self._passes[key] = found

    def _refusal(self, rule: Rule, device: str, service: str | None, asked: Asked) -> Refusal:
        """The refusal, which tells the visitor what to do."""
        ways = rule.ways
        if {"login", "lease"} & ways and self.sign_in is not None:
            refusal = self.sign_in.known_person(rule, device, service, asked)
            if refusal is not None:
                return refusal
            if asked.is_navigation:
                return self.sign_in.begin(rule, device, service, asked)
        headers: list[Field] = []
        hints = []
        if "basic" in ways:
            headers.append((b"WWW-Authenticate", b'Basic realm="tunnelmux", charset="UTF-8"'))
            hints.append("a name and a password")
        if "token" in ways:
            headers.append((b"WWW-Authenticate", b'Tunnelmux-Access realm="tunnelmux"'))
            hints.append("a token in the field Tunnelmux-Access")
        if "login" in ways:
            hints.append("a browser that signs in")
        if "lease" in ways:
            hints.append("a browser that signs in, while your lease runs")
        if "link" in ways:
            hints.append("a link that is still good")
        if not headers:
            headers.append((b"WWW-Authenticate", b'Tunnelmux-Access realm="tunnelmux"'))
        message = f"This service requires you to identify yourself: use {', or '.join(hints)}."
        return Refusal(401, "access-unproven", message, headers=headers)


def _field_value(text: str) -> bytes:
    """Text as a field value: all but printable ASCII is percent-encoded (RFC 3986 section 2.1)."""
    return quote(text, safe=_PLAIN).encode("ascii")


_PLAIN = "".join(chr(byte) for byte in range(0x20, 0x7F) if chr(byte) != "%")
