"""Remote assistance, as the device allows it: `[assist]` of agent.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.config.rules import (
    Address,
    InvalidSetting,
    check_label,
    check_network,
    is_loopback,
    parse_address,
)

__all__ = ["AssistConfig"]

LONGEST = 12 * 3600.0
"""Seconds; a server grants no more either."""

_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_ACCOUNT_WORDS = ("openssh", "dropbear")


class AssistConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The leases this device accepts. The server can only restrict them further."""

    mode: Literal["off", "ask", "allow"] = "off"
    """How requests are answered: `off` refuses all, and the switch cannot be turned on either;
    `ask` shows each to the person at the device; `allow` accepts all. `tunnelmux-agent assist on`
    accepts requests for a time without asking, `assist off` refuses them all until the next `on`.
    """

    longest: float = 7200.0
    """Seconds a lease may last, extensions included; at most 12 h. A switch that
    is turned on without a time goes off by itself after this."""

    services: list[str] = []
    """Services that leases may give access to. Empty: all that are declared."""

    hours: str = ""
    """When leases are accepted, by this device's clock, like `"08:00-18:00"`; `"22:00-06:00"` goes
    over midnight. Empty: always. A running lease goes on to its end.
    """

    ask_timeout: float = 30.0
    """Seconds that a request waits for the answer of the person here; then it is refused. At most
    10 minutes.
    """

    hook: list[str] = []
    """A program with its arguments, run for each request in mode `ask`. The request is in the
    variables `TUNNELMUX_LEASE`, `_WHO`, `_REASON`, `_SERVICES` and `_SECONDS`. Exit status 0
    accepts, 2 leaves the answer to the person, any other refuses.
    """

    page: str | None = None
    """Where this device shows its switch to a browser on it, like `"127.0.0.1:3820"`: loopback
    only. Without it there is no page."""

    page_origins: list[str] = []
    """Sites that may show that page in a frame: the device's own, like
    `"https://device.local"`."""

    log: Path | None = None
    """The file on this device that records requests, answers, sessions and their ends; default:
    `NAME.assist.log` in the state directory."""

    max_log_lines: int = 600
    """Lines about one kind of event in that file in an hour, and then how many were left out: a
    proxy that causes as many as it can pushes no older ones out of its 4 MB within half a day.
    """

    max_leases: int = 64
    """Leases that run or wait at once, so that a proxy cannot fill this device's memory. Each
    person at its services has one or two.
    """

    max_waiting_leases: int = 16
    """Of those, requests that wait for an answer. Each may run the hook, and a person answers them
    one by one.
    """

    max_new_leases: int = 60
    """New leases in an hour: as many at once, then one each time that their share of the hour has
    passed. Each is written to the disk. The others are refused.
    """

    account_keys: Path | None = None
    """The authorized_keys of the account that `assist on --code` opens, like
    `"/var/lib/support/.ssh/authorized_keys"`. Without it, there are no codes."""

    account_words: Literal["openssh", "dropbear"] = "openssh"
    """The SSH server that reads the file: `dropbear` knows options neither for an expiry nor for
    addresses, so only this agent ends the access, by removing the line.
    """

    account_from: list[str] = []
    """Source networks that the line allows: those of this agent, which dials the SSH server. Empty:
    this machine.
    """

    def __post_init__(self) -> None:
        if not 60 <= self.longest <= LONGEST:
            raise InvalidSetting("longest", f"must be 60 to {LONGEST:.0f} seconds")
        if not 1 <= self.ask_timeout <= 600:
            raise InvalidSetting("ask_timeout", "must be 1 to 600 seconds")
        for limit in ("max_log_lines", "max_leases", "max_waiting_leases", "max_new_leases"):
            if getattr(self, limit) < 1:
                raise InvalidSetting(limit, "must be at least 1")
        for service in self.services:
            check_label("services", service)
        if self.hours and not _HOURS.fullmatch(self.hours):
            raise InvalidSetting("hours", 'is not a time of day: write it like "08:00-18:00"')
        if self.hook and not all(part and "\0" not in part for part in self.hook):
            raise InvalidSetting("hook", 'has an empty part: write ["/path/program", "argument"]')
        if self.page is not None and not is_loopback(parse_address("page", self.page).host):
            raise InvalidSetting(
                "page", "must be on loopback, like 127.0.0.1:3820: the page asks for no password"
            )
        for origin in self.page_origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]{1,255}", origin):
                raise InvalidSetting(
                    "page_origins", f'"{origin}" is not an origin: write "https://device.local"'
                )
        for network in self.account_from:
            check_network("account_from", network)

    @property
    def page_address(self) -> Address | None:
        """`page`, parsed."""
        return None if self.page is None else parse_address("page", self.page)

    def is_open_at(self, minute: int) -> bool:
        """Whether leases are accepted at this minute of the day."""
        match = _HOURS.fullmatch(self.hours)
        if match is None:
            return True
        begin, end = (int(match[n]) * 60 + int(match[n + 1]) for n in (1, 3))
        if begin <= end:
            return begin <= minute < end
        return minute >= begin or minute < end
