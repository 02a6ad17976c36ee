"""Find the rule of a service: rules of proxy.toml first, then those of the registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config.access import AccessConfig, AccessRule
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.pump.field_names import field_kind

__all__ = [
    "DEFAULT_TENANT",
    "OPEN",
    "Place",
    "Rule",
    "RuleBook",
    "check_identity_fields",
    "tenant_of",
]

DEFAULT_TENANT = "default"
"""The tenant that is left out in host names."""

_MOST_KNOWN = 4096
# Services whose rule is cached; with one more the cache is emptied.

_BY_LOGIN = AccessRule(let_in=["login"])
# The rule for devices of the registry without a rule of their own.


_PROOFS = {
    "login": "cookie",
    "link": "cookie",
    "lease": "cookie",
    "basic": "login",
    "token": "token",
}


Scope = Literal["service", "device", "all"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule is written, and what it is about there."""

    source: Literal["proxy.toml", "registry", "default"]
    scope: Scope


_NOWHERE = Place("default", "all")


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule in the form that the gate uses."""

    said: AccessRule
    tenant: str
    """The name of the tenant whose members may sign in."""
    ways: frozenset[str]
    addresses: AddressLists
    users: dict[str, str] = field(repr=False)
    """The hash of each user's password, by name."""
    tokens: dict[str, str] = field(repr=False)
    """The name of each token, by the SHA-256 of it in hexadecimal."""
    is_open: bool
    """Whether all visitors are admitted."""
    asks_for: frozenset[str]
    """The kinds of proof that count: `cookie`, `login`, `token`."""
    place: Place

    @classmethod
    def of(cls, said: AccessRule, tenant: str, place: Place = _NOWHERE) -> Rule:
        """The rule from its configuration, for devices of this tenant."""
        ways = frozenset(said.let_in)
        addresses = AddressLists(said.allow_from, said.deny_from)
        return cls(
            said=said,
            tenant=tenant,
            ways=ways,
            addresses=addresses,
            place=place,
            is_open="public" in ways and not addresses,
            asks_for=frozenset(_PROOFS[way] for way in ways if way in _PROOFS),
            users=dict(entry.split(":", 1) for entry in said.users),
            tokens={entry.partition(":")[2]: entry.partition(":")[0] for entry in said.tokens},
        )

    def admits_member(self, user_id: str, role: str | None) -> bool:
        """Whether a member of the tenant with this role is admitted."""
        said = self.said
        if role is None:
            return False
        return not (said.roles or said.people) or role in said.roles or user_id in said.people


OPEN = AccessRule(let_in=["public"])
"""The rule without configuration, where only programs on this machine can reach the ingress."""


class RuleBook:
    """The rules in force. `devices` has those of the registry."""

    def __init__(self, devices: DeviceRegister) -> None:
        self._devices = devices
        self.configure(AccessConfig(), is_local=True)

    def configure(self, config: AccessConfig, *, is_local: bool) -> None:
        """Use these rules from now on. `is_local` says that only programs on this machine reach the
        ingress: then no rule is needed.
        """
        self._rules = {(rule.device, rule.service): rule for rule in config.rules}
        self._ruled = {
            rule.device
            for rule in config.rules
            if rule.service is not None or "lease" in rule.let_in
        }
        self._default: AccessRule = config
        if not config.let_in and is_local:
            self._default = OPEN
        self.forget()

    def forget(self) -> None:
        """Drop cached rules, because devices or their rules in the registry have changed."""
        self._known: dict[tuple[str, str | None], Rule] = {}
        self._with_services: dict[str, bool] = {}

    def find(self, device: str, service: str | None) -> Rule:
        """The rule of this service; None is the device's default service."""
        rule = self._known.get((device, service))
        if rule is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            rule = self._look(device, service)
            self._known[device, service] = rule
        return rule

    def has_service_rules(self, device: str) -> bool:
        """Whether requests to this device must name the service, because a service has its own rule
        or is accessible by lease.
        """
        found = self._with_services.get(device)
        if found is None:
            if len(self._with_services) >= _MOST_KNOWN:
                self._with_services.clear()
            known = self._devices.find(device)
            rules = known.registration.rules if known is not None and known.registration else {}
            found = self._with_services[device] = device in self._ruled or any(
                service or "lease" in rule.let_in for service, rule in rules.items()
            )
        return found

    def _look(self, device: str, service: str | None) -> Rule:
        tenant = tenant_of(device)
        if (named := self._rules.get((device, service))) is not None:
            scope: Scope = "service" if service is not None else "device"
            return Rule.of(named, tenant, Place("proxy.toml", scope))
        if (named := self._rules.get((device, None))) is not None:
            return Rule.of(named, tenant, Place("proxy.toml", "device"))
        known = self._devices.find(device)
        if known is not None and known.registration is not None:
            rules = known.registration.rules
            if service and service in rules:
                return Rule.of(rules[service], tenant, Place("registry", "service"))
            if "" in rules:
                return Rule.of(rules[""], tenant, Place("registry", "device"))
            return Rule.of(_BY_LOGIN, tenant)
        if known is None and not self._default.let_in:
            # The same as for a known device, so that a visitor cannot find out which devices exist.
            return Rule.of(_BY_LOGIN, tenant)
        is_written = self._default.let_in and self._default is not OPEN
        return Rule.of(
            self._default, tenant, Place("proxy.toml", "all") if is_written else _NOWHERE
        )


def tenant_of(label: str) -> str:
    """The tenant of a device, by its label in host names."""
    return label.partition("--")[2] or DEFAULT_TENANT


def check_identity_fields(rule: AccessRule, path: str = "") -> None:
    """Refuse a field name that visitors could send themselves: only a field that is always dropped
    from requests can carry an identity. Raises InvalidSetting.
    """
    for key in ("user_field", "email_field", "roles_field"):
        name: str | None = getattr(rule, key)
        if name is not None and field_kind(name.encode("ascii")) != "forwarding":
            raise InvalidSetting(
                path + key,
                f'"{name}" is a field that visitors may send: take one that never gets through '
                "from outside, such as Remote-User, X-Forwarded-User, X-Auth-Request-User, "
                "X-WebAuth-User or another that begins like these",
            )
