"""The commands that an agent may run: none unless it is switched on, and then only those listed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.host_name import to_a_label_pattern
from tunnelmux.config.rules import InvalidSetting, MissingSetting, check_network
from tunnelmux.limits import ExecLimits

__all__ = ["OLD_ALGORITHMS", "ExecConfig"]

OLD_ALGORITHMS: dict[str, tuple[str, ...]] = {
    "key exchange": ("diffie-hellman-group-exchange-sha1", "diffie-hellman-group1-sha1"),
    "server host key": ("ssh-rsa", "ssh-dss"),
    "encryption": ("aes256-cbc", "aes192-cbc", "aes128-cbc", "3des-cbc"),
    "MAC": ("hmac-sha1-96", "hmac-md5", "hmac-md5-96"),
}
"""Algorithms that `algorithms` may allow, by their kind: old servers need them, and new clients no
longer offer them (OpenSSH since 7.0 to 8.8). They are offered last, so that only a server without
better ones uses them.
"""

_LARGEST_COUNT = 2**31
_LARGEST_TIME = 30 * 86_400.0


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Commands that this device runs over SSH when it is asked to, through the tunnel or by a
    Socket.IO main server. Commands that are not allowed here are never run; the server cannot
    override it.
    """

    enabled: bool = False
    """Whether commands are run at all."""

    hosts: list[str] = []
    """SSH servers that may be reached: names and addresses, with `*` and `?` as wildcards, and
    networks such as `10.0.0.0/8`. Networks and patterns like `192.168.1.*` stand for addresses
    only. Empty: none. `"*"`: all."""

    users: list[str] = []
    """Users that commands may run as, with `*` and `?` as wildcards. Empty: none. `"*"`: all."""

    commands: list[str] = []
    """Commands that may be run; each entry is matched with the whole command. Within one, `*` and
    `?` stand for letters, digits, spaces and `@%_+=:,./-` only, so that no shell syntax can be
    appended. Empty: none. `"*"`: all.
    """

    host_keys: Literal["tofu", "known_hosts", "off"] = "tofu"
    """How SSH servers are verified: `tofu` trusts a server at the first connection and pins its key
    in `device.state_dir`; `known_hosts` trusts those in that file only; `off` trusts any.
    """

    known_hosts: Path | None = None
    """An OpenSSH known_hosts file, whose keys are trusted from the start."""

    ssh_agent: Path | None = None
    """The socket of an ssh-agent, whose keys are used for commands that bring no credential."""

    algorithms: list[str] = []
    """Old algorithms that are allowed too, by OpenSSH's names, such as `ssh-rsa` or
    `diffie-hellman-group1-sha1`. When a server offers no other algorithm, the error names those it
    has.
    """

    limits: ExecLimits = ExecLimits()
    """Limits of commands."""

    def __post_init__(self) -> None:
        for key in ("hosts", "users", "commands"):
            for pattern in getattr(self, key):
                if not pattern.strip():
                    raise InvalidSetting(key, 'has an empty entry: remove it, or write "*" for all')
        for host in self.hosts:
            if "/" in host:
                check_network("hosts", host)
            try:
                to_a_label_pattern(host)
            except ValueError as error:
                raise InvalidSetting("hosts", str(error)) from None
        known = [name for names in OLD_ALGORITHMS.values() for name in names]
        for name in self.algorithms:
            if name not in known:
                raise InvalidSetting(
                    "algorithms", f'"{name}" cannot be allowed: there are {", ".join(known)}'
                )
        if self.host_keys == "known_hosts" and self.known_hosts is None:
            raise MissingSetting("known_hosts", 'is missing: host_keys = "known_hosts" needs it')
        for field in dataclasses.fields(self.limits):
            value = getattr(self.limits, field.name)
            largest = _LARGEST_COUNT if isinstance(value, int) else _LARGEST_TIME
            if not 0 < value <= largest:
                raise InvalidSetting(
                    field.name, f"{value} is not above 0 and at most {largest:.0f}"
                )
