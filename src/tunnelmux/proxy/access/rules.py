"""Which rule holds for which service: those of proxy.toml first, then those of the registry."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config.access import AccessConfig, AccessRule
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.pump.field_names import field_kind

__all__ = ["DEFAULT_TENANT", "OPEN", "Rule", "RuleBook", "check_identity_fields", "tenant_of"]

DEFAULT_TENANT = "default"
"""The tenant whose devices have no tenant in their host names."""

_MOST_KNOWN = 4096
# Services remembered with their rule; one more, and all are looked for again.

_BY_LOGIN = AccessRule(let_in=["login"])
# What holds for a device of the registry without a rule of its own.


_PROOFS = {
    "login": "cookie",
    "link": "cookie",
    "lease": "cookie",
    "basic": "login",
    "token": "token",
}


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule, ready to judge by."""

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
    """Whether there is nothing to judge."""
    asks_for: frozenset[str]
    """What of a request matters: `cookie`, `login`, `token`."""

    @classmethod
    def of(cls, said: AccessRule, tenant: str) -> Rule:
        """The rule that was written like this, for devices of this tenant."""
        ways = frozenset(said.let_in)
        addresses = AddressLists(said.allow_from, said.deny_from)
        return cls(
            said=said,
            tenant=tenant,
            ways=ways,
            addresses=addresses,
            is_open="public" in ways and not addresses,
            asks_for=frozenset(_PROOFS[way] for way in ways if way in _PROOFS),
            users=dict(entry.split(":", 1) for entry in said.users),
            tokens={entry.partition(":")[2]: entry.partition(":")[0] for entry in said.tokens},
        )

    def admits_member(self, user_id: str, role: str | None) -> bool:
        """Whether a person who has this role in the tenant may come."""
        said = self.said
        if role is None:
            return False
        return not (said.roles or said.people) or role in said.roles or user_id in said.people


OPEN = AccessRule(let_in=["public"])
"""What holds without any rule where only programs of this machine can come in."""


class RuleBook:
    """The rules that hold now. `devices` know those of the registry."""

    def __init__(self, devices: DeviceRegister) -> None:
        self._devices = devices
        self.configure(AccessConfig(), is_local=True)

    def configure(self, config: AccessConfig, *, is_local: bool) -> None:
        """Go by these rules from now on. `is_local` says that only programs of this machine reach
        the ingress: then nothing has to be said."""
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
        """Rules of the registry, or devices, have changed: look for all of them again."""
        self._known: dict[tuple[str, str | None], Rule] = {}
        self._with_services: dict[str, bool] = {}

    def find(self, device: str, service: str | None) -> Rule:
        """The rule of this service, None being the device's default one."""
        rule = self._known.get((device, service))
        if rule is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            rule = Rule.of(self._look(device, service), tenant_of(device))
            self._known[device, service] = rule
        return rule

    def has_service_rules(self, device: str) -> bool:
        """Whether a service of this device has a rule of its own, or is lent by its name, so that
        it has to be named."""
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

    def _look(self, device: str, service: str | None) -> AccessRule:
        named = self._rules.get((device, service)) or self._rules.get((device, None))
        if named is not None:
            return named
        known = self._devices.find(device)
        if known is None:
            # As for a device that is there, so that a stranger does not learn which are.
            return self._default if self._default.let_in else _BY_LOGIN
        if known.registration is None:
            return self._default
        rules = known.registration.rules
        return rules.get(service or "") or rules.get("") or _BY_LOGIN


def tenant_of(label: str) -> str:
    """The tenant of a device, by its label in host names."""
    return label.partition("--")[2] or DEFAULT_TENANT


def check_identity_fields(rule: AccessRule, path: str = "") -> None:
    """Refuse a name for the service's fields that a visitor could send as well: only those that are
    dropped wherever they come from outside can say who it is. Raises InvalidSetting."""
    for key in ("user_field", "email_field", "roles_field"):
        name: str | None = getattr(rule, key)
        if name is not None and field_kind(name.encode("ascii")) != "forwarding":
            raise InvalidSetting(
                path + key,
                f'"{name}" is a field that visitors may send: take one that never gets through '
                "from outside, such as Remote-User, X-Forwarded-User, X-Auth-Request-User, "
                "X-WebAuth-User or another that begins like these",
            )
