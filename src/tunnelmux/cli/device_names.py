"""Names of devices on the command line, and their completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from tunnelmux.cli.interrupts import run_interruptible

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnelmux.cli.fleet.fleet import Fleet

__all__ = ["DEVICE", "DEVICE_AND_PATH", "DEVICE_AND_SERVICE", "SERVICE"]

_PATIENCE = 2.0
# Seconds that a person waits after pressing Tab; then nothing is offered.


class _DeviceName(click.ParamType):  # type: ignore[type-arg]  # click 8.1 takes none
    """The name of a device."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text or "/" in text or text != text.strip():
            self.fail(f'"{text}" is not a device name', param, ctx)
        return text

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The devices whose names begin so."""

        async def names(fleet: Fleet) -> list[str]:
            return [device.name for device in await fleet.devices(incomplete)]

        return [CompletionItem(name) for name in _ask(ctx, names) if name.startswith(incomplete)]


class _DeviceAndMore(click.ParamType):  # type: ignore[type-arg]  # click 8.1 takes none
    """`DEVICE:SERVICE` or `DEVICE/SERVICE/path`."""

    def __init__(self, name: str, mark: str) -> None:
        self.name = name
        self._mark = mark

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Devices; after a device, its services."""
        device, mark, part = incomplete.partition(self._mark)

        async def names(fleet: Fleet) -> list[str]:
            if not mark:
                found = await fleet.devices(device)
                return [f"{item.name}{self._mark}" for item in found]
            details = await fleet.details(device)
            return [f"{device}{mark}{item.name}" for item in details.services]

        if part.count(self._mark):
            return []
        return [CompletionItem(name) for name in _ask(ctx, names) if name.startswith(incomplete)]


class _Service(click.ParamType):  # type: ignore[type-arg]  # click 8.1 takes none
    """A service of the device given before it."""

    name = "service"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The services of that device."""
        device = ctx.params.get("device")

        async def names(fleet: Fleet) -> list[str]:
            return [item.name for item in (await fleet.details(str(device))).services]

        found = _ask(ctx, names) if device else []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]


DEVICE = _DeviceName()
DEVICE_AND_SERVICE = _DeviceAndMore("device:service", ":")
DEVICE_AND_PATH = _DeviceAndMore("device/service/path", "/")
SERVICE = _Service()


def _ask(ctx: click.Context, names: Callable[[Fleet], Awaitable[list[str]]]) -> list[str]:
    """The names that the fleet has; none when it cannot be asked: a prompt shows no errors."""
    import trio

    from tunnelmux.cli.fleet.opening import find_place, open_fleet

    async def run() -> list[str]:
        options = ctx.params
        place = find_place(options.get("url"), options.get("secret_file"), options.get("ca_file"))
        with trio.move_on_after(_PATIENCE):
            async with open_fleet(place) as fleet:
                return await names(fleet)
        return []

    try:
        return run_interruptible(run)
    except Exception:  # noqa: BLE001  whatever it is, the person is typing
        return []
