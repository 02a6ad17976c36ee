"""tunnelmux logs: what the agent of a device writes to its log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.output import styled
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.backend.agent_log import LogLine
    from tunnelmux.cli.fleet.fleet import Fleet

__all__ = ["logs"]

_LEVELS = ("debug", "info", "warning", "error", "critical")
_STYLES = {"debug": "dim", "warning": "warn", "error": "bad", "critical": "bad"}

_RETRY = 2.0
# Seconds before a device that disconnected is asked again.

_MORE = """\
The lines come from the device itself, which keeps the last 500 of them in
memory ([log] keep_lines in its agent.toml); after a restart of its agent
older ones are only in the device's own journal."""


@click.command(
    epilog=examples(
        ("tunnelmux logs dev1", "The last 100 lines of its agent's log."),
        ("tunnelmux logs dev1 -f", "And new ones, over its reconnects, until Ctrl-C."),
        ("tunnelmux logs dev1 -n 500 --level warning", "Of the last 500, warnings and errors."),
        ("tunnelmux logs dev1 -f --json | jq -r .event", "One JSON object a line."),
        more=_MORE,
    )
)
@click.argument("device", type=DEVICE)
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines as they come.")
@click.option(
    "--lines",
    "-n",
    metavar="N",
    type=click.IntRange(0, 100_000),
    default=100,
    show_default=True,
    help="How many of the last lines.",
)
@click.option(
    "--level",
    type=click.Choice(_LEVELS[:4]),
    default="debug",
    help="Only lines of this level and above.  [default: all]",
)
@json_option
@place_options
def logs(device: str, follow: bool, lines: int, level: str, as_json: bool, **options: Any) -> int:
    """Show the log of DEVICE's agent, and follow it."""

    async def work(fleet: Fleet) -> None:
        reader = _Reader(device, level, as_json=as_json)
        if not follow:
            await reader.read(fleet, lines, follow=False)
            return
        await reader.follow(fleet, lines)

    return run_on_fleet(options, work)


class _Reader:
    """Writes the lines, and remembers the last one."""

    def __init__(self, device: str, level: str, *, as_json: bool) -> None:
        self._device = device
        self._least = _LEVELS.index(level)
        self._as_json = as_json
        self._last = ""
        self._has_begun = False

    async def read(self, fleet: Fleet, lines: int, *, follow: bool) -> None:
        """Until the device has no more, or goes away. Raises as `Fleet.log`."""
        from tunnelmux.cli.fleet.errors import one_error

        async with (
            one_error(),
            fleet.log(self._device, lines=lines, follow=follow, after=self._last) as log,
        ):
            if follow and not self._has_begun:
                said = f"Following the log of {self._device} at {fleet.server}; Ctrl-C ends it."
                click.echo(said, err=True)
            self._has_begun = True
            async for line in log:
                self._last = line.position or self._last
                self._print(line)

    async def follow(self, fleet: Fleet, lines: int) -> None:
        """Until cancelled, over the device's reconnects. Raises errors of the first attempt."""
        import trio

        from tunnelmux.cli.fleet.errors import NoSuchThing, NotThere
        from tunnelmux.errors import ConnectError

        is_away = False
        while True:
            try:
                await self.read(fleet, lines, follow=True)
                is_away = False
            except (NotThere, NoSuchThing, ConnectError) as exc:
                if not self._has_begun:
                    raise
                # A proxy forgets those that are not connected: then there is no such device.
                if not is_away:
                    why = printable(str(exc))
                    click.echo(f"{self._device} is away; it is asked again. ({why})", err=True)
                is_away = True
            await trio.sleep(_RETRY)

    def _print(self, line: LogLine) -> None:
        if line.missing:
            self._print_missing(line)
            return
        if not line.event or (line.level in _LEVELS and _LEVELS.index(line.level) < self._least):
            return
        if self._as_json:
            import msgspec

            click.echo(msgspec.json.encode(line).decode())
            return
        moment = f"{line.at.astimezone():%H:%M:%S}" if line.at is not None else "-" * 8
        cells = [
            styled(moment, "dim"),
            styled(printable(line.level).ljust(7), _STYLES.get(line.level, "")),
            printable(line.event).ljust(20),
            *(f"{styled(f'{printable(k)}=', 'dim')}{_value(v)}" for k, v in line.fields.items()),
        ]
        click.echo("  ".join(cells).rstrip())

    def _print_missing(self, line: LogLine) -> None:
        if self._as_json:
            import msgspec

            click.echo(msgspec.json.encode(line).decode())
        else:
            words = f"… {line.missing} lines are missing: the device keeps no more"
            click.echo(styled(words, "warn"))


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if not text or " " in text or '"' in text:
        text = json.dumps(text, ensure_ascii=False)
    return printable(text)
