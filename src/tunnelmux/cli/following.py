"""tunnelmux events, watch: follow what happens to devices."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.listing import print_devices
from tunnelmux.cli.output import styled
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.model import FleetEvent

__all__ = ["events", "watch"]

_REDRAW = 5.0
# Seconds after which the table is drawn again because its times are out of date.

_TOGETHER = 0.2
# Seconds for which further events are awaited before the table is drawn again.

_STYLES = {"device.connected": "good", "device.lost": "bad", "gap": "warn"}


@click.command(
    epilog=examples(
        ("tunnelmux events", "One line for each, until Ctrl-C."),
        ("tunnelmux events --json | jq -r .device", "One JSON object a line."),
    )
)
@json_option
@place_options
def events(as_json: bool, **options: Any) -> int:
    """Follow devices that come and go, and changes to them."""

    async def work(fleet: Fleet) -> None:
        async with fleet.events() as stream:
            click.echo(f"Following {fleet.server}; Ctrl-C ends it.", err=True)
            async for event in stream:
                _print_event(event, as_json)

    return run_on_fleet(options, work)


def _print_event(event: FleetEvent, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(event).decode())
        return
    moment = (event.at or datetime.now().astimezone()).astimezone()
    said = {"gap": "some events are missing"}.get(event.kind, event.reason)
    what = styled(event.kind.ljust(17), _STYLES.get(event.kind, ""))
    line = f"{styled(f'{moment:%H:%M:%S}', 'dim')}  {what}  {printable(event.device or '')}"
    click.echo(f"{line}  {printable(said)}".rstrip())


@click.command(
    epilog=examples(
        ("tunnelmux watch", "The table of tunnelmux ls, kept up to date until Ctrl-C."),
        ("tunnelmux watch cam", 'Only devices that have "cam" in their name.'),
        ("tunnelmux watch --json", "A line of JSON, the whole list, after each change."),
    )
)
@click.argument("part", required=False, default="")
@json_option
@place_options
def watch(part: str, as_json: bool, **options: Any) -> int:
    """Show the devices, and keep the table up to date."""

    async def work(fleet: Fleet) -> None:
        await _watch(fleet, part, as_json)

    return run_on_fleet(options, work)


async def _watch(fleet: Fleet, part: str, as_json: bool) -> None:
    import trio

    is_screen = sys.stdout.isatty() and not as_json
    async with fleet.events() as stream:
        if is_screen:
            sys.stdout.write("\x1b[?1049h\x1b[?25l")  # a screen of its own, without a cursor
        try:
            while True:
                await _show(fleet, part, as_json, is_screen)
                with trio.move_on_after(_REDRAW if is_screen else float("inf")):
                    await anext(stream)
                    with trio.move_on_after(_TOGETHER):
                        async for _ in stream:
                            pass
        finally:
            if is_screen:
                sys.stdout.write("\x1b[?25h\x1b[?1049l")
                sys.stdout.flush()


async def _show(fleet: Fleet, part: str, as_json: bool, is_screen: bool) -> None:
    found = await fleet.devices(part)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
        return
    if is_screen:
        sys.stdout.write("\x1b[H\x1b[2J")
    else:
        click.echo()
    print_devices(found)
    online = sum(item.state == "online" for item in found)
    words = f"{online} of {len(found)} online at {fleet.server}"
    sys.stdout.write(f"\n{styled(words, 'dim')}\n")
    sys.stdout.flush()
