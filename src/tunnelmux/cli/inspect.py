"""tunnelmux inspect: the requests to a service with their heads and bodies, to look at, compare and
send again."""

from __future__ import annotations

import difflib
import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE, SERVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.output import (
    Cell,
    Column,
    duration,
    print_fields,
    print_json,
    print_table,
    size,
    styled,
)
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.inspecting import InspectedRequest, Inspection, Inspector

__all__ = ["inspect"]

_CLASSES = {2: "good", 3: "", 4: "warn", 5: "bad"}

_MORE = """\
REQUEST is a number from tunnelmux inspect ls, or a whole id from --json."""


@click.group(
    epilog=examples(
        ("tunnelmux inspect start dev1 web", "From now on, for ten minutes; then call the page."),
        ("tunnelmux inspect ls dev1", "The requests that came, the newest first."),
        ("tunnelmux inspect show dev1 17", "One of them, with both heads."),
        ("tunnelmux inspect replay dev1 17", "The same request once more, to the device."),
        more="Secrets in heads are hidden before anything is kept. While it runs, the\n"
        "service's requests are somewhat slower. When it ends, all is deleted.",
    )
)
def inspect() -> None:
    """Look at the requests to a service, and send them again."""


@inspect.command(
    epilog=examples(
        ("tunnelmux inspect start dev1 web", "Heads, sizes and times, for ten minutes."),
        ("tunnelmux inspect start dev1 web --for 60 --bodies", "Bodies, too, up to 64 KiB each."),
    )
)
@click.argument("device", type=DEVICE)
@click.argument("service", type=SERVICE)
@click.option(
    "--for",
    "minutes",
    metavar="MINUTES",
    type=click.FloatRange(0.2, 60),
    default=10.0,
    show_default=True,
    help="How long it runs.",
)
@click.option("--bodies", is_flag=True, help="Keep bodies, too; secrets in them are not hidden.")
@json_option
@place_options
def start(
    device: str, service: str, minutes: float, bodies: bool, as_json: bool, **options: Any
) -> int:
    """Start to keep the requests to SERVICE of DEVICE."""

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.fleet import check_service
        from tunnelmux.cli.fleet.inspecting import inspector_of

        check_service(await fleet.details(device), service)
        begun = await inspector_of(fleet).begin(
            device, service, minutes * 60, bodies=bodies, asked_by=getpass.getuser()
        )
        if as_json:
            print_json(begun)
            return
        left = duration((begun.until - datetime.now(UTC)).total_seconds() + 1)
        click.echo(f"Requests to {service} of {device} are kept for {left}.")
        click.echo(f"To see them: tunnelmux inspect ls {device}", err=True)

    return run_on_fleet(options, work)


@inspect.command(
    "ls",
    epilog=examples(
        ("tunnelmux inspect ls dev1", "All that was kept, the newest first."),
        ("tunnelmux inspect ls dev1 --status 5xx --path '/api/*'", "Only what failed there."),
    ),
)
@click.argument("device", type=DEVICE)
@click.option("--status", metavar="LIST", default="", help="Only with these: 404, 5xx; commas.")
@click.option("--path", metavar="START", default="", help="Only paths that begin so, or a pattern.")
@json_option
@place_options
def list_requests(device: str, status: str, path: str, as_json: bool, **options: Any) -> int:
    """List the requests that were kept of DEVICE."""
    from tunnelmux.errors import ConfigError
    from tunnelmux.sessions import RequestFilter, RequestSeen

    try:
        wanted = RequestFilter.parse({"status": status, "path": path})
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def fits(one: InspectedRequest) -> bool:
        bare = one.target.partition("?")[0]
        return wanted.matches(RequestSeen(at=one.at, way="http", status=one.status, path=bare))

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.inspecting import inspector_of

        inspector = inspector_of(fleet)
        running = await _running(inspector, device)
        requests = [item for one in running for item in await inspector.requests(one) if fits(item)]
        requests.sort(key=lambda item: item.at, reverse=True)
        if as_json:
            print_json(requests)
            return
        for one in running:
            _tell_about(one)
        if requests:
            _print_requests(requests)

    return run_on_fleet(options, work)


@inspect.command(
    epilog=examples(("tunnelmux inspect show dev1 17", "Both heads, and bodies."), more=_MORE)
)
@click.argument("device", type=DEVICE)
@click.argument("request")
@json_option
@place_options
def show(device: str, request: str, as_json: bool, **options: Any) -> int:
    """Show one request and its answer."""
    return _show_one(options, device, request, as_json=as_json)


@inspect.command(
    epilog=examples(
        ("tunnelmux inspect compare dev1 17 18", "As a unified diff: - of 17, + of 18."),
        more=f"{_MORE}\nExit status 1 means that they differ.",
    )
)
@click.argument("device", type=DEVICE)
@click.argument("first", metavar="REQUEST")
@click.argument("second", metavar="REQUEST")
@place_options
def compare(device: str, first: str, second: str, **options: Any) -> int:
    """Compare two requests and their answers, line by line."""

    async def work(fleet: Fleet) -> int:
        from tunnelmux.cli.fleet.inspecting import inspector_of

        inspector = inspector_of(fleet)
        one, other = [
            list(_as_lines(await inspector.request(*await _find(inspector, device, name))))
            for name in (first, second)
        ]
        lines = list(difflib.unified_diff(one, other, first, second, lineterm="", n=1000))
        for line in lines:
            style = {"-": "bad", "+": "good", "@": "dim"}.get(line[:1], "")
            click.echo(styled(line, style))
        if not lines:
            click.echo("They say the same.", err=True)
        return 1 if lines else 0

    return run_on_fleet(options, work)


@inspect.command(
    epilog=examples(
        ("tunnelmux inspect curl dev1 17", "To copy; hidden secrets are left out."), more=_MORE
    )
)
@click.argument("device", type=DEVICE)
@click.argument("request")
@place_options
def curl(device: str, request: str, **options: Any) -> int:
    """Print a request as a command for curl."""

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.inspecting import inspector_of

        inspector = inspector_of(fleet)
        found = await inspector.request(*await _find(inspector, device, request))
        click.echo(printable(found.curl))

    return run_on_fleet(options, work)


@inspect.command(
    epilog=examples(
        ("tunnelmux inspect replay dev1 17", "What the service answers now."),
        more=f"{_MORE}\nSecrets that were hidden are not sent.",
    )
)
@click.argument("device", type=DEVICE)
@click.argument("request")
@json_option
@place_options
def replay(device: str, request: str, as_json: bool, **options: Any) -> int:
    """Send a request once more through the tunnel."""
    return _show_one(options, device, request, as_json=as_json, replay=True)


@inspect.command(
    epilog=examples(
        ("tunnelmux inspect stop dev1", "All of its services."),
        ("tunnelmux inspect stop dev1 web", "One of them."),
    )
)
@click.argument("device", type=DEVICE)
@click.argument("service", type=SERVICE, required=False)
@place_options
def stop(device: str, service: str | None, **options: Any) -> int:
    """End it now, and forget what was kept."""

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.inspecting import inspector_of

        inspector = inspector_of(fleet)
        running = await _running(inspector, device)
        chosen = [one for one in running if service in (None, one.service)]
        if not chosen:
            raise _not_inspected(device, f"{service} is not among {_names(running)}")
        for one in chosen:
            await inspector.end(one)
            click.echo(f"{one.service} of {device} is not inspected any more.")

    return run_on_fleet(options, work)


# -- what is found ------------------------------------------------------------------------------


async def _running(inspector: Inspector, device: str) -> list[Inspection]:
    running = await inspector.running(device)
    if not running:
        raise _not_inspected(device, f"tunnelmux inspect start {device} SERVICE begins it")
    return running


def _not_inspected(device: str, more: str) -> Exception:
    from tunnelmux.cli.fleet.errors import NoSuchThing

    return NoSuchThing(f"nothing of {device} is inspected now: {more}")


def _names(running: list[Inspection]) -> str:
    return ", ".join(one.service for one in running)


async def _find(inspector: Inspector, device: str, name: str) -> tuple[Inspection, str]:
    """The inspection that has this request, and its id."""
    from tunnelmux.cli.fleet.errors import NoSuchThing

    found: list[tuple[Inspection, str]] = []
    for one in await _running(inspector, device):
        for item in await inspector.requests(one):
            if item.id == name:
                return one, name
            if _short(item.id) == name:
                found.append((one, item.id))
    if len(found) > 1:
        ids = " and ".join(item for _, item in found)
        raise NoSuchThing(f"{name} could be {ids}: write the whole id")
    if not found:
        raise NoSuchThing(
            f'no request "{name}" is kept of {device}: tunnelmux inspect ls {device} has them'
        )
    return found[0]


# -- how it is shown ----------------------------------------------------------------------------


def _tell_about(one: Inspection) -> None:
    left = duration((one.until - datetime.now(UTC)).total_seconds())
    who = f", asked for by {printable(one.asked_by)}" if one.asked_by else ""
    gone = f", {one.forgotten} of them forgotten" if one.forgotten else ""
    click.echo(f"{one.service}: {one.seen} requests{gone}, {left} left{who}.", err=True)


def _print_requests(requests: list[InspectedRequest]) -> None:
    short = [_short(item.id) for item in requests]
    names = short if len(set(short)) == len(short) else [item.id for item in requests]
    print_table(
        [
            Column(title="REQUEST"),
            Column(title="TIME"),
            Column(title="METHOD"),
            Column(title="STATUS", is_number=True),
            Column(title="TOOK", is_number=True, is_spare=True),
            Column(title="IN", is_number=True, is_spare=True),
            Column(title="OUT", is_number=True, is_spare=True),
            Column(title="PATH"),
        ],
        [
            [
                Cell(name, "bold"),
                f"{item.at.astimezone():%H:%M:%S}",
                item.method,
                Cell(str(item.status or "-"), _CLASSES.get(item.status // 100, "")),
                _milliseconds(item.seconds),
                size(item.bytes_in),
                size(item.bytes_out),
                item.target + (f"  (again {_short(item.replay_of)})" if item.replay_of else ""),
            ]
            for name, item in zip(names, requests, strict=True)
        ],
    )


def _show_one(
    options: dict[str, Any], device: str, name: str, *, as_json: bool, replay: bool = False
) -> int:
    """Show a kept request, or the result of sending it again."""

    async def work(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.inspecting import inspector_of

        inspector = inspector_of(fleet)
        known = await _find(inspector, device, name)
        found = await inspector.request(*known, replay=replay)
        if as_json:
            print_json(found)
        else:
            _print_request(found)

    return run_on_fleet(options, work)


def _print_request(item: InspectedRequest) -> None:
    took = _milliseconds(item.seconds) or "it goes on"
    after = _milliseconds(item.answered_after)
    messages = f"{item.messages_in} in, {item.messages_out} out" if item.is_websocket else ""
    print_fields(
        [
            ("Request", Cell(item.id, "bold")),
            ("Again", item.replay_of),
            ("Came", f"{item.at.astimezone():%Y-%m-%d %H:%M:%S} from {item.visitor}"),
            ("Took", f"{took}, the answer began after {after}" if after else took),
            ("Messages", messages),
            ("Reason", item.reason),
            ("Problem", item.problem),
        ]
    )
    click.echo()
    for line in _as_lines(item):
        name, colon, rest = line.partition(": ")
        is_field = bool(colon) and " " not in name
        click.echo(f"{styled(f'{name}:', 'dim')} {rest}" if is_field else line)


def _as_lines(item: InspectedRequest) -> Iterator[str]:
    """As it would be on the wire: both heads, and what was kept of both bodies."""
    yield printable(f"{item.method} {item.target}")
    yield from _content(item.headers, item.body, item.bytes_in)
    yield ""
    yield str(item.status or "no answer")
    yield from _content(item.answer_headers, item.answer_body, item.bytes_out)


def _content(headers: list[tuple[str, str]], body: bytes | None, count: int) -> Iterator[str]:
    for name, value in headers:
        yield printable(f"{name}: {value}")
    if not count:
        return
    yield ""
    if body is None:
        yield f"({size(count)}, not kept: tunnelmux inspect start … --bodies)"
        return
    try:
        text = body.decode()
    except UnicodeDecodeError:
        yield f"({size(count)} that are no text)"
        return
    for line in text.splitlines():
        yield printable(line)
    if len(body) < count:
        yield f"(the first {size(len(body))} of {size(count)})"


def _short(request_id: str) -> str:
    return request_id.rpartition("-")[2]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
