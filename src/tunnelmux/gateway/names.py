"""The user names and the targets of forwards that people write.

ssh root@cam1@GATEWAY          the account root on the device cam1 (also root#cam1)
ssh root@GATEWAY               a list of devices to choose from
ssh ticket-ABC…@GATEWAY        with a ticket
ssh -J GATEWAY root@cam1       asks the gateway for cam1, port 22
ssh -L 8080:web--cam1:80 …     the service web of cam1
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunnelmux.config import Secret

__all__ = ["TICKET_PREFIX", "Login", "forward_names", "parse_login"]

TICKET_PREFIX = "ticket-"

_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
# What useradd(8) takes, and capitals, which some systems have.

_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})")
# A name, a label of a host name, or a serial number.

_WELL_KNOWN = {22: ("ssh",), 80: ("web", "http"), 443: ("https",)}
# The service that a port means where no service is named; `ssh -J` asks for port 22.


@dataclass(frozen=True, slots=True)
class Login:
    """What a user name asks for."""

    account: str
    """The account on the device; empty where only a ticket was given."""
    device: str
    """As it was written: a name, a label or a serial number; empty for a list to choose from."""
    ticket: Secret | None = None


def parse_login(user: str) -> Login | None:
    """What this user name asks for; None where it cannot be understood."""
    if user.startswith(TICKET_PREFIX):
        ticket, _, account = user.removeprefix(TICKET_PREFIX).partition("@")
        if account and not _ACCOUNT.fullmatch(account):
            return None
        return Login(account, "", Secret(ticket)) if ticket else None
    account, separator, device = user.replace("#", "@").partition("@")
    if not _ACCOUNT.fullmatch(account):
        return None
    if separator and not _DEVICE.fullmatch(device):
        return None
    return Login(account, device)


def forward_names(host: str, port: int) -> list[tuple[str, tuple[str, ...]]]:
    """What `host:port` may mean, the likeliest first: a device, and names of services. The first of
    these that the device offers is meant."""
    if not _DEVICE.fullmatch(host):
        return []
    meanings = []
    if port in _WELL_KNOWN:
        meanings.append((host, _WELL_KNOWN[port]))
    service, separator, device = host.partition("--")
    if separator and service and device:
        meanings.append((device, (service.lower(),)))
    return meanings
