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
"""Seconds: what a server grants at most, too."""

_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_ACCOUNT_WORDS = ("openssh", "dropbear")


class AssistConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What leases this device takes. The server can be stricter, and never more generous."""

    mode: Literal["off", "ask", "allow"] = "off"
    """What a request meets: `off` is always refused, and the switch cannot be turned on either;
    `ask` is shown to the person at the device; `allow` is let in. `tunnelmux-agent assist on` lets
    requests in for a time without asking, `assist off` refuses them all until the next `on`."""

    longest: float = 7200.0
    """The seconds a lease may last, with all that it is extended by; at most 12 h. A switch that
    is turned on without a time goes off by itself after this."""

    services: list[str] = []
    """The services that leases may be about. Empty: all that are declared."""

    hours: str = ""
    """When leases are taken, by this device's clock, like `"08:00-18:00"`; `"22:00-06:00"` goes
    over midnight. Empty: always. One that runs goes on to its end."""

    ask_timeout: float = 30.0
    """The seconds that a request waits for an answer here; then it is refused. At most 10
    minutes."""

    hook: list[str] = []
    """A program with its arguments, run for each request in mode `ask`, which it finds in
    `TUNNELMUX_LEASE`, `_WHO`, `_REASON`, `_SERVICES` and `_SECONDS`. It says yes with the exit
    status 0, has no opinion with 2, and says no with any other."""

    page: str | None = None
    """Where this device shows its switch to a browser on it, like `"127.0.0.1:3820"`: loopback
    only. Without it there is no page."""

    page_origins: list[str] = []
    """Sites that may show that page in a frame: the device's own, like
    `"https://device.local"`."""

    log: Path | None = None
    """Where requests, answers, sessions and ends are written down on this device; default:
    `NAME.assist.log` in the state directory."""

    account_keys: Path | None = None
    """The authorized_keys of the account that `assist on --code` opens, like
    `"/var/lib/support/.ssh/authorized_keys"`. Without it, there are no codes."""

    account_words: Literal["openssh", "dropbear"] = "openssh"
    """Whose options the line has: `dropbear` knows neither an end nor addresses, so that only this
    agent takes the line out."""

    account_from: list[str] = []
    """Networks that the SSH server sees such a log-in come from: this agent's own, as it dials.
    Empty: this machine."""

    def __post_init__(self) -> None:
        if not 60 <= self.longest <= LONGEST:
            raise InvalidSetting("longest", f"must be 60 to {LONGEST:.0f} seconds")
        if not 1 <= self.ask_timeout <= 600:
            raise InvalidSetting("ask_timeout", "must be 1 to 600 seconds")
        for service in self.services:
            check_label("services", service)
        if self.hours and not _HOURS.fullmatch(self.hours):
            raise InvalidSetting("hours", 'is no time of day: write it like "08:00-18:00"')
        if self.hook and not all(part and "\0" not in part for part in self.hook):
            raise InvalidSetting("hook", 'has an empty part: write ["/path/program", "argument"]')
        if self.page is not None and not is_loopback(parse_address("page", self.page).host):
            raise InvalidSetting(
                "page", "must be on loopback, like 127.0.0.1:3820: all who reach it may switch"
            )
        for origin in self.page_origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]{1,255}", origin):
                raise InvalidSetting(
                    "page_origins", f'"{origin}" is no origin: write "https://device.local"'
                )
        for network in self.account_from:
            check_network("account_from", network)

    @property
    def page_address(self) -> Address | None:
        """Where the page is."""
        return None if self.page is None else parse_address("page", self.page)

    def is_open_at(self, minute: int) -> bool:
        """Whether leases are taken at this minute of the day."""
        match = _HOURS.fullmatch(self.hours)
        if match is None:
            return True
        begin, end = (int(match[n]) * 60 + int(match[n + 1]) for n in (1, 3))
        if begin <= end:
            return begin <= minute < end
        return minute >= begin or minute < end
