"""Groups: several devices under one name. For each request or connection one of them is chosen.

Access rules are about the group's name; limits, leases and logs are about the device that was
chosen. A device whose target failed is passed over for a while, unless none is left.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import trio

from tunnelmux.config.groups import MAX_DEVICES, GroupConfig
from tunnelmux.http.head import RequestHead
from tunnelmux.pump.cookies import split_own_cookies
from tunnelmux.wire import MEMBER_COOKIE, MEMBER_COOKIE_PLAIN

__all__ = ["FAILED_FOR", "FAILURES", "Group", "Groups", "Wish", "member_cookie"]

FAILED_FOR = 10.0
"""Seconds for which a device is passed over after its target failed: short enough to find out soon
that it works again, long enough that few visitors meet the failure."""

FAILURES = frozenset(
    {
        "target-broke",
        "target-down",
        "target-refused",
        "target-timeout",
        "target-tls-failed",
        "target-unreachable",
        "tunnel-lost",
        "unknown-service",
    }
)
"""The Tunnelmux-Reasons of a device that cannot serve now, where another one perhaps can."""

MOST_FAILURES = 1024
"""Failures that are kept, the latest ones; twice, because those of services that a device does not
have are kept apart: their names are the visitor's, who may invent any number."""


Labelled = Callable[[str, str], tuple[str, ...]]


def _none_labelled(_key: str, _value: str) -> tuple[str, ...]:
    return ()


def member_cookie(request: RequestHead) -> bytes:
    """The pair `name=value` by which a browser comes back to a device; empty without one."""
    for name, value in request.headers:
        if name.lower() == b"cookie":
            for pair in split_own_cookies(value)[1]:
                if pair.partition(b"=")[0] in (MEMBER_COOKIE, MEMBER_COOKIE_PLAIN):
                    return pair
    return b""


@dataclass(frozen=True, slots=True)
class Wish:
    """What decides between the devices of a group, besides how busy they are."""

    address: str
    """The visitor's address."""
    cookie: bytes = b""
    """The pair `name=value` by which a browser comes back to a device; empty for none."""
    present: str = ""
    """The device that the visitor's connection uses now."""


class Group:
    """One group. *labelled* finds the devices with a label."""

    def __init__(self, config: GroupConfig, labelled: Labelled = _none_labelled) -> None:
        self.name = config.name
        self._config = config
        self._listed = tuple(config.devices)
        self._label = config.wanted_label
        self._labelled = labelled

    @property
    def devices(self) -> tuple[str, ...]:
        """Those of the configuration, in its order, or those that have its label now."""
        if self._config.label is None:
            return self._listed
        return self._labelled(*self._label)[:MAX_DEVICES]

    @property
    def needs_cookie(self) -> bool:
        """Whether browsers get a cookie, by which they come back to a device."""
        return self._config.sticky == "cookie"

    def has_cookie_of(self, device: str, cookie: bytes) -> bool:
        """Whether a browser's cookie names this device."""
        return _mark_in(cookie) == _mark(self.name, device)

    def cookie_for(self, device: str, *, is_secure: bool) -> bytes:
        """The value of the `Set-Cookie` field that brings a browser back to this device; it lives
        as long as the browser's session (RFC 6265 section 5.3)."""
        name = MEMBER_COOKIE if is_secure else MEMBER_COOKIE_PLAIN
        secure = b"; Secure" if is_secure else b""
        return b"%s=%s; Path=/; HttpOnly; SameSite=Lax%s" % (name, _mark(self.name, device), secure)

    def preferred(self, devices: Collection[str], wish: Wish) -> str | None:
        """The one of these devices that the visitor should get without regard to how busy they
        are; None where that decides."""
        if self._config.sticky == "cookie" and wish.cookie:
            mark = _mark_in(wish.cookie)
            for device in devices:
                if _mark(self.name, device) == mark:
                    return device
        if self._config.sticky == "address":
            order = _order(wish.address, self.devices)
            return next((name for name in order if name in devices), None)
        if self._config.balance == "failover":
            return next((name for name in self.devices if name in devices), None)
        return None


class Failures:
    """Which devices failed a moment ago, by service. Each call is one step, however many there are,
    and the oldest one is forgotten for the newest."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, device: str, service: str | None, now: float) -> None:
        """The device failed now."""
        self._until[device, service] = now + FAILED_FOR
        self._until.move_to_end((device, service))
        if len(self._until) > MOST_FAILURES:
            self._until.popitem(last=False)

    def has(self, device: str, service: str | None, now: float) -> bool:
        """Whether it is passed over now."""
        return self._until.get((device, service), now) > now

    def clear(self) -> None:
        """Forget all."""
        self._until.clear()


class Groups:
    """The groups of a proxy. `visits_of(device)` is how many visits a device has now,
    `labelled(key, value)` the devices with a label."""

    def __init__(
        self,
        visits_of: Callable[[str], int],
        labelled: Labelled = _none_labelled,
    ) -> None:
        self._visits_of = visits_of
        self._labelled = labelled
        self._groups: dict[str, Group] = {}
        self._failed = Failures()
        self._unknown = Failures()

    def configure(self, groups: Iterable[GroupConfig]) -> None:
        """Have these groups from now on."""
        self._groups = {config.name: Group(config, self._labelled) for config in groups}
        self._failed.clear()
        self._unknown.clear()

    def find(self, name: str) -> Group | None:
        """The group of this name."""
        return self._groups.get(name)

    def choose(
        self, group: Group, service: str | None, reachable: Collection[str], wish: Wish
    ) -> str:
        """The device for a visitor, one of those that can be reached, of which there is one at
        least. A connection stays with its device as long as no other one is less busy.
        """
        now = trio.current_time()
        well = [
            name
            for name in reachable
            if not self._failed.has(name, service, now)
            and not self._unknown.has(name, service, now)
        ]
        preferred = group.preferred(well or reachable, wish)
        if preferred is not None:
            return preferred
        return self._least_busy(well or list(reachable), wish.present)

    def failed(self, device: str, service: str | None, reason: str = "") -> None:
        """Pass over this device for a while: its target failed, for this Tunnelmux-Reason."""
        if any(device in group.devices for group in self._groups.values()):
            book = self._unknown if reason == "unknown-service" else self._failed
            book.add(device, service, trio.current_time())

    def _least_busy(self, devices: list[str], present: str) -> str:
        # By chance and not in turn: a visitor is placed anew on the way from pump to h11, and with
        # two turns for each of them one of two idle devices would get them all.
        first = random.randrange(len(devices))  # noqa: S311  nothing is kept secret by it
        best, fewest = "", float("inf")
        for device in [*devices[first:], *devices[:first]]:
            busy = self._visits_of(device) - (device == present)
            if busy < fewest or (busy == fewest and device == present):
                best, fewest = device, busy
        return best


@lru_cache(maxsize=4096)
def _mark(group: str, device: str) -> bytes:
    """What stands for a device in a cookie: the same at every proxy, and not its name."""
    return hashlib.sha256(f"{group}/{device}".encode()).hexdigest()[:16].encode("ascii")


def _mark_in(cookie: bytes) -> bytes:
    return cookie.partition(b"=")[2]


@lru_cache(maxsize=4096)
def _order(address: str, devices: tuple[str, ...]) -> list[str]:
    """The devices in the order in which this address prefers them (rendezvous hashing): where one
    is missing, only its own visitors go elsewhere."""
    return sorted(devices, key=lambda name: hashlib.sha256(f"{address} {name}".encode()).digest())
