"""tunnelmux forward: services of devices at ports of this machine."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE_AND_SERVICE
from tunnelmux.cli.fleet_options import examples, place_options, run_on_fleet
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.printable import printable

if TYPE_CHECKING:
    import trio

    from tunnelmux.cli.fleet.fleet import Fleet

__all__ = ["forward"]

_SPEC = re.compile(r"([^:/\s]+):([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
# Seconds between two attempts to reach a device that is away.


@dataclass(slots=True)
class _Wish:
    device: str
    service: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.device}:{self.service}"


@click.command(
    epilog=examples(
        ("tunnelmux forward dev1:web", "At a free port, which is printed."),
        ("tunnelmux forward dev1:ssh 2222 dev2:db 5432", "Several at once."),
        (
            "tunnelmux forward dev1:web 8080 --wait 300",
            "Connections that come while the device is away wait for it.",
        ),
    )
)
@click.argument(
    "wishes",
    metavar="DEVICE:SERVICE [PORT]...",
    nargs=-1,
    required=True,
    type=DEVICE_AND_SERVICE,
)
@click.option(
    "--listen",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen. All who can reach this address reach the devices as you.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="How long a connection waits for a device that is away.",
)
@place_options
def forward(wishes: tuple[str, ...], listen: str, wait: float, **options: Any) -> int:
    """Forward ports of this machine to services of devices.

    Until Ctrl-C, and over the devices' reconnects. The proxy needs no port for it.
    """
    wanted = _read(wishes)

    async def work(fleet: Fleet) -> None:
        await _Forwarding(fleet, wait).run(wanted, listen)

    return run_on_fleet(options, work)


def _read(words: tuple[str, ...]) -> list[_Wish]:
    wanted: list[_Wish] = []
    for word in words:
        match = _SPEC.fullmatch(word)
        if match is not None:
            wanted.append(_Wish(match[1], match[2]))
        elif word.isascii() and word.isdigit() and wanted and not wanted[-1].port:
            wanted[-1].port = int(word)
            if not 1 <= wanted[-1].port <= 65_535:
                raise click.UsageError(f"{word} is not a port: ports go from 1 to 65535")
        else:
            raise click.UsageError(
                f'"{word}" is neither DEVICE:SERVICE nor the port for one: write it like dev1:web '
                "8080"
            )
    return wanted


class _Forwarding:
    """Listens, and joins each connection to a new one at the device."""

    def __init__(self, fleet: Fleet, wait: float) -> None:
        self._fleet = fleet
        self._wait = wait
        self._is_away: set[str] = set()

    async def run(self, wanted: list[_Wish], address: str) -> None:
        import trio

        from tunnelmux.cli.fleet.fleet import check_service

        for name in dict.fromkeys(wish.device for wish in wanted):
            details = await self._fleet.details(
                name
            )  # report a wrong name now, and not with the first connection
            for wish in wanted:
                if wish.device == name:
                    check_service(details, wish.service)
        async with trio.open_nursery() as nursery:
            for wish in wanted:
                listener = _listen(address, wish.port)
                port = listener.socket.getsockname()[1]
                where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                click.echo(f"{where} is {wish}")
                nursery.start_soon(self._serve, wish, listener)

    async def _serve(self, wish: _Wish, listener: trio.SocketListener) -> None:
        import trio

        async def handle(local: trio.SocketStream) -> None:
            await self._carry(wish, local)

        await trio.serve_listeners(handle, [listener])

    async def _carry(self, wish: _Wish, local: trio.SocketStream) -> None:
        import trio

        from tunnelmux.cli.fleet.errors import FleetError, NotThere, one_error
        from tunnelmux.relay import abort, relay

        deadline = trio.current_time() + self._wait
        pause = _FIRST_PAUSE
        while True:
            try:
                async with one_error(), self._fleet.connect(wish.device, wish.service) as stream:
                    self._is_back(wish)
                    await relay(local, stream)
                    return
            except (FleetError, ConnectError) as exc:
                # The device was there at the start; a proxy forgets those that are not connected.
                away = isinstance(exc, NotThere | ConnectError) or exc.code == "no_such_device"
                if not away:
                    click.echo(f"{wish}: {printable(str(exc))}", err=True)
                    break
                self._goes_away(wish, exc)
                if trio.current_time() + pause > deadline:
                    break
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        await abort(local)

    def _goes_away(self, wish: _Wish, exc: Exception) -> None:
        """Report it once, and not for every connection."""
        if str(wish) not in self._is_away:
            self._is_away.add(str(wish))
            click.echo(f"{wish} is away: {printable(str(exc))}", err=True)

    def _is_back(self, wish: _Wish) -> None:
        if str(wish) in self._is_away:
            self._is_away.discard(str(wish))
            click.echo(f"{wish} is back", err=True)


def _listen(address: str, port: int) -> trio.SocketListener:
    import trio

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"{address}:{port} cannot be listened on ({exc.strerror}): choose another port"
        ) from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
