"""A fleet of devices, whichever way it is reached."""

from __future__ import annotations

import abc
import difflib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio

from tunnelmux.backend.agent_log import LogLine
from tunnelmux.cli.fleet.errors import NoSuchThing, NotAllowed
from tunnelmux.cli.fleet.model import (
    Account,
    Device,
    DeviceDetails,
    FleetEvent,
    SeenRequest,
    Service,
)
from tunnelmux.config import Secret
from tunnelmux.sessions import RequestFilter

__all__ = ["Fleet", "HttpAccess", "check_service", "no_such_device", "services_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAccess:
    """How another program, which speaks HTTP, reaches a service of a device."""

    url: str
    """The URL of the service's root, without a slash at the end."""
    token: Secret | None = None
    """What to send as `Authorization: Bearer`."""
    socket: str | None = None
    """A Unix socket to connect to in place of the URL's host."""
    service: str | None = None
    """What to send as `Tunnelmux-Service`."""
    ca_file: str | None = None
    """The authorities that sign the server's certificate."""


class Fleet(abc.ABC):
    """The devices that a person may reach. Made by `open_fleet`.

    Calls raise ConnectError when the server cannot be reached, and FleetError for every refusal.
    """

    server: str
    """Where it is, for people."""

    how_to_begin = "There are no devices yet: tunnelmux invite says how to add one."
    """For a person who sees an empty list."""

    @abc.abstractmethod
    async def account(self) -> Account:
        """The caller's account there."""

    @abc.abstractmethod
    async def devices(self, part: str = "") -> list[Device]:
        """Devices by name; with `part`, those that have it in their name or serial number."""

    @abc.abstractmethod
    async def device(self, name: str) -> Device:
        """One device. Raises NoSuchThing."""

    @abc.abstractmethod
    async def details(self, name: str) -> DeviceDetails:
        """All that is known of one device. Raises NoSuchThing."""

    @abc.abstractmethod
    def connect(
        self, device: str, service: str
    ) -> AbstractAsyncContextManager[trio.abc.HalfCloseableStream]:
        """A connection to a service of a device, for the length of the block.

        Raises NotThere, NoSuchThing, NotAllowed; afterwards BrokenResourceError.
        """

    @abc.abstractmethod
    def http(self, device: str, service: str) -> AbstractAsyncContextManager[HttpAccess]:
        """A way to a service for a program that speaks HTTP, for the length of the block."""

    @abc.abstractmethod
    def events(self) -> AbstractAsyncContextManager[AsyncIterator[FleetEvent]]:
        """What happens from now on. A connection that is lost is made again; then comes a `gap`
        when events were missed."""

    @abc.abstractmethod
    def requests(
        self, device: str, wanted: RequestFilter
    ) -> AbstractAsyncContextManager[AsyncIterator[SeenRequest]]:
        """Requests to a device as they end, from now on, over its reconnects. A connection that
        is lost is made again. Raises NoSuchThing when there is no such device."""

    @abc.abstractmethod
    def log(
        self, device: str, *, lines: int, follow: bool, after: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[LogLine]]:
        """The last lines of the device's log, or those after the position `after`, and with
        `follow` what comes, until the device goes away. Raises NotThere, NoSuchThing, NotAllowed;
        the iteration raises NotThere or ConnectError when it breaks."""

    def administration_missing(self) -> NotAllowed:
        """The error of commands that need tunnelmux-api."""
        return NotAllowed(
            f"{self.server} is a proxy, which keeps no accounts, and this needs tunnelmux-api. "
            "A proxy has its devices and tokens in proxy.toml, or lets them in by tunnelmux-proxy "
            "invite; their services are reached by tunnelmux forward, ssh and curl"
        )


def no_such_device(name: str, known: Iterable[str], where: str) -> NoSuchThing:
    """The error for a name that no device has, with the one that was probably meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        hint = f'did you mean "{close[0]}"?'
    elif names:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        hint = f"the devices are {shown}"
    else:
        hint = "it has no devices"
    return NoSuchThing(f'no device is called "{name}" at {where}: {hint}', code="no_such_device")


def check_service(details: DeviceDetails, service: str) -> None:
    """Raises NoSuchThing for a service that the device is known not to have."""
    names = [item.name for item in details.services]
    if names and service not in names:
        device = details.device.name
        raise NoSuchThing(
            f'{device} has no service "{service}"; it has {", ".join(names)}',
            code="no_such_service",
        )


def services_of(names: Iterable[str]) -> list[Service]:
    """Services of which only the names are known."""
    return [Service(name=name) for name in names]
