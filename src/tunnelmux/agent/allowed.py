"""Which commands this device runs: the lists of [exec]."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

from tunnelmux.commands import CommandRequest
from tunnelmux.config import ExecConfig
from tunnelmux.config.host_name import to_a_label_pattern

__all__ = ["AllowList"]

_HARMLESS = r"[\w@%+=:,./ -]"
"""The characters that a wildcard in a command can match: none that a shell gives a meaning to."""

_ANY = r"[\s\S]"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AllowList:
    """The allowed hosts, users and commands of one configuration. All others are forbidden."""

    def __init__(self, config: ExecConfig) -> None:
        hosts = [_plain_host(to_a_label_pattern(host)) for host in config.hosts if "/" not in host]
        self._networks = [ipaddress.ip_network(host) for host in config.hosts if "/" in host]
        self._names = _matcher([host for host in hosts if not _is_for_addresses(host)], _ANY)
        self._addresses = _matcher([host for host in hosts if _may_be_address(host)], _ANY)
        self._users = _matcher(config.users, _ANY)
        self._commands = _matcher(config.commands, _HARMLESS)

    def objection(self, request: CommandRequest) -> str | None:
        """Why the command is forbidden, in a sentence, or None when it is allowed."""
        if not self._allows_host(request.host):
            return _forbidden(f'commands on the host "{request.host}"', "hosts")
        if not self._users(request.username):
            return _forbidden(f'commands as the user "{request.username}"', "users")
        if not self._commands(request.command):
            return _forbidden("this command", "commands")
        return None

    def _allows_host(self, host: str) -> bool:
        address = _address(host)
        if address is None:
            return self._names(_plain_host(host))
        if any(address in network for network in self._networks):
            return True
        return self._addresses(str(address)) or self._addresses(_plain_host(host))


def _is_for_addresses(pattern: str) -> bool:
    """Whether a pattern is written like an address, so that it matches no name: `192.168.1.*` must
    not match `192.168.1.example.com`.
    """
    if ":" in pattern:
        return True
    digits = any(letter.isdigit() for letter in pattern)
    has_form = "." in pattern or pattern[:1].isdigit()
    return digits and has_form and not pattern.strip("0123456789.*?")


def _may_be_address(pattern: str) -> bool:
    """Whether a pattern is meant for addresses; `fe80*` would match some only by chance."""
    return _is_for_addresses(pattern) or not pattern.strip("0123456789.*?")


def _forbidden(what: str, key: str) -> str:
    return f"this device does not allow {what}: add it to exec.{key} in the agent's configuration"


def _plain_host(host: str) -> str:
    return host.lower().rstrip(".")


def _address(host: str) -> _Address | None:
    """The address in `host`, or None for a name. An IPv4-mapped address becomes the IPv4
    address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _matcher(patterns: Sequence[str], wildcard: str) -> Callable[[str], bool]:
    """A function that tells whether a text matches one of these patterns with `*` and `?`; "*"
    alone matches every text.
    """
    if "*" in patterns:
        return lambda _text: True
    expressions = [
        re.compile(
            "".join(
                {"*": f"{wildcard}*", "?": wildcard}.get(letter, re.escape(letter))
                for letter in pattern
            )
        )
        for pattern in patterns
    ]
    return lambda text: any(expression.fullmatch(text) for expression in expressions)
