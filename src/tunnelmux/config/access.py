"""Who may visit a service: one rule, as proxy.toml and the registry write it."""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from tunnelmux.config.rules import (
    InvalidSetting,
    check_fingerprint,
    check_label,
    check_network,
    check_unique,
)

__all__ = [
    "PASSWORD_HASH",
    "WAYS",
    "AccessConfig",
    "AccessRule",
    "ServiceAccess",
    "Way",
    "check_address_lists",
]

Way = Literal["public", "login", "basic", "link", "token", "lease"]
"""How a visitor may get access, in the order of the names: without any proof; signed in at
tunnelmux-api; with a password; by a signed link; with a token; signed in, and only while they hold
a running lease.
"""

WAYS: tuple[str, ...] = get_args(Way)

ROLES = ("viewer", "operator", "admin", "owner")

PASSWORD_HASH = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{16,64})\$([A-Za-z0-9+/]{32,128})"
)
"""A password hash: scrypt (RFC 7914) in the PHC string format."""

_FIELD_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_USER_NAME = re.compile(r"[^\x00-\x1f:\x7f]{1,64}")
_RECORD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_ENTRIES = 256
# Entries of one list. More people should share a role, more programs a token.


class AccessRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may visit. Any one of the ways in `let_in` is enough; the address lists are checked
    first.
    """

    let_in: list[str] = []
    """How visitors may get access: `public`, or some of `login`, `basic`, `link`, `token`
    and `lease`."""

    roles: list[str] = []
    """With `login`: members of the device's tenant with one of these roles (`viewer`, `operator`,
    `admin`, `owner`). Without `roles` and `people`, every member."""

    people: list[str] = []
    """With `login`: these members too, by the id that `GET /api/members` shows."""

    users: list[str] = []
    """With `basic`: users and their passwords, as `name:hash`; `tunnelmux-proxy password NAME`
    makes one.
    """

    tokens: list[str] = []
    """With `token`: what programs send as `Tunnelmux-Access`, as `name:sha256` with the SHA-256 of
    the token in hexadecimal."""

    allow_from: list[str] = []
    """Addresses and networks of visitors; with it, all others are refused, with any proof."""

    deny_from: list[str] = []
    """Addresses and networks that are refused, even where `allow_from` names them."""

    preflights: bool = False
    """Whether pages of other sites may use the service: their CORS preflights, which never carry a
    proof, go to it, and so do requests that such a page causes, with the visitor's proof."""

    user_field: str | None = None
    """A second field that tells the service the user's name, like `Tunnelmux-User` does: for
    example `Remote-User`.
    """

    email_field: str | None = None
    """The same for the e-mail address, beside `Tunnelmux-Email`."""

    roles_field: str | None = None
    """The same for the roles, beside `Tunnelmux-Roles`."""

    assertion: bool = False
    """Whether the service also gets a signed `Tunnelmux-Assertion` (a JWT); needs `[registry]`."""

    def __post_init__(self) -> None:
        self._check_ways()
        check_address_lists(self.allow_from, self.deny_from)
        for person in self.people:
            if not _RECORD_ID.fullmatch(person):
                raise InvalidSetting(
                    "people", f'"{person}" is not the id of a person: GET /api/members shows them'
                )
        self._check_proofs()
        for key in ("user_field", "email_field", "roles_field"):
            name = getattr(self, key)
            if name is not None and not _FIELD_NAME.fullmatch(name):
                raise InvalidSetting(
                    key, f'{name!r} is not a field\'s name: write it like "Remote-User"'
                )
        for key in ("roles", "people", "users", "tokens", "allow_from", "deny_from"):
            if len(getattr(self, key)) > _MAX_ENTRIES:
                raise InvalidSetting(key, f"has more than {_MAX_ENTRIES} entries")

    def _check_proofs(self) -> None:
        check_unique("users", [_name_of("users", entry) for entry in self.users])
        check_unique("tokens", [_name_of("tokens", entry) for entry in self.tokens])
        for entry in self.users:
            if not PASSWORD_HASH.fullmatch(entry.partition(":")[2]):
                raise InvalidSetting(
                    "users",
                    f'"{entry.partition(":")[0]}" has no hash that this program makes: '
                    "take the line that `tunnelmux-proxy password NAME` prints",
                )
        for entry in self.tokens:
            check_fingerprint("tokens", entry.partition(":")[2])

    def _check_ways(self) -> None:
        for key, names in (("roles", ROLES), ("let_in", WAYS)):
            for value in getattr(self, key):
                if value not in names:
                    raise InvalidSetting(key, f'"{value}" is none of {", ".join(names)}')
        if "public" in self.let_in and len(self.let_in) > 1:
            raise InvalidSetting(
                "let_in", 'has "public", which lets every visitor in, and other ways: keep one'
            )
        for way, keys in (
            ("login", ("roles", "people")),
            ("basic", ("users",)),
            ("token", ("tokens",)),
        ):
            for key in keys:
                if getattr(self, key) and way not in self.let_in:
                    raise InvalidSetting(key, f'is of no use without "{way}" in let_in')
        for way, key in (("basic", "users"), ("token", "tokens")):
            if way in self.let_in and not getattr(self, key):
                raise InvalidSetting(key, f'is missing: "{way}" in let_in needs it')

    @property
    def needs_registry(self) -> bool:
        """Whether this rule needs people or keys that only a registry has."""
        return bool({"login", "link", "lease"} & set(self.let_in)) or self.assertion


class ServiceAccess(AccessRule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule of one device, or of one service on it."""

    device: str
    """The device, by its label in host names."""

    service: str | None = None
    """The service; without it, all services of the device that have no rule of their own."""

    def __post_init__(self) -> None:
        for part in self.device.split("--", 1):
            check_label("device", part)
        if self.service is not None:
            check_label("service", self.service)
        super().__post_init__()
        if not self.let_in:
            raise InvalidSetting("let_in", f"is missing: set it to some of {', '.join(WAYS)}")


class AccessConfig(AccessRule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may visit devices that no rule names; devices of the registry have their rules there, or
    `login`. Without `let_in`, all visitors that reach an ingress on a loopback address may; an
    ingress that other machines can reach does not start.
    """

    rules: list[ServiceAccess] = []
    """The rules of devices and services. They take precedence over those of the registry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unique(
            "rules.device", [f"{one.device} {one.service or ''}".strip() for one in self.rules]
        )


def check_address_lists(allow_from: list[str], deny_from: list[str]) -> None:
    """Refuse entries that are neither an address nor a network."""
    for key, networks in (("allow_from", allow_from), ("deny_from", deny_from)):
        for network in networks:
            check_network(key, network)


def _name_of(key: str, entry: str) -> str:
    name, colon, _ = entry.partition(":")
    if not colon or not _USER_NAME.fullmatch(name):
        raise InvalidSetting(key, "has an entry that is not `name:hash`")
    return name
