"""tunnelmux tail: the requests to a device, as they come."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE, SERVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.output import size, styled
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.model import SeenRequest

__all__ = ["tail"]

_MORE = """\
A line is written when a request is over: of a download or a WebSocket, at
its end. Columns: time, way in, method, status, duration, bytes to and from
the visitor, service, visitor, path (without its query)."""

_CLASSES = {2: "good", 3: "", 4: "warn", 5: "bad"}


@click.command(
    epilog=examples(
        ("tunnelmux tail dev1", "A line for each request, until Ctrl-C."),
        ("tunnelmux tail dev1 --service web --status 5xx", "Only failed requests, of one service."),
        ("tunnelmux tail dev1 --path '/api/*' --json", "One JSON object a line."),
        more=_MORE,
    )
)
@click.argument("device", type=DEVICE)
@click.option("--service", metavar="NAME", type=SERVICE, default="", help="Only of this service.")
@click.option(
    "--status",
    metavar="LIST",
    default="",
    help="Only these statuses, like 404 or 5xx; several with commas.",
)
@click.option(
    "--path",
    metavar="START",
    default="",
    help="Only paths that begin with this; with *, ? or [...] a pattern for the whole path.",
)
@json_option
@place_options
def tail(device: str, service: str, status: str, path: str, as_json: bool, **options: Any) -> int:
    """Show the requests to DEVICE as they come, over its reconnects."""
    from tunnelmux.errors import ConfigError
    from tunnelmux.sessions import RequestFilter

    try:
        wanted = RequestFilter.parse({"service": service, "status": status, "path": path})
    except ValueError as error:
        raise ConfigError(str(error)) from None

    async def work(fleet: Fleet) -> None:
        async with fleet.requests(device, wanted) as requests:
            said = f"Watching requests to {device} at {fleet.server}; Ctrl-C ends it."
            click.echo(said, err=True)
            async for seen in requests:
                _print(seen, as_json)

    return run_on_fleet(options, work)


def _print(seen: SeenRequest, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(seen).decode())
        return
    if seen.kind == "dropped":
        click.echo(styled(f"… {seen.count} requests are missing: they came too fast", "warn"))
        return
    moment = (seen.at or datetime.now().astimezone()).astimezone()
    status = str(seen.status) if seen.status else "-"
    cells = [
        styled(f"{moment:%H:%M:%S}", "dim"),
        seen.way.ljust(4),
        (printable(seen.method) or "-").ljust(7),
        styled(status.rjust(3), _CLASSES.get(seen.status // 100, "")),
        _seconds(seen.seconds).rjust(8),
        size(seen.bytes_in).rjust(9),
        size(seen.bytes_out).rjust(9),
        printable(seen.service) or "-",
        printable(seen.visitor) or "-",
        printable(seen.path),
    ]
    why = seen.problem or seen.ended or seen.reason or ("websocket" if seen.upgraded else "")
    line = "  ".join(cells).rstrip()
    click.echo(f"{line}  {styled(f'({printable(why)})', 'dim')}" if why else line)


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
