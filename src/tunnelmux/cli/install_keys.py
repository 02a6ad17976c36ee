"""tunnelmux install-key …: keys by which many devices get in. For installations with
tunnelmux-api."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tunnelmux.cli.device_admin import Ended, confirm, tell_ended
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_at_api
from tunnelmux.cli.output import Cell, Column, duration, print_json, print_table
from tunnelmux.errors import ConnectError

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.by_api import ApiFleet

__all__ = ["InstallKey", "install_key"]

_SHOWN = 10
# Names of devices that a question lists; an install key may have let thousands in.


class InstallKey(msgspec.Struct, kw_only=True):
    """A key by which many devices get in."""

    id: str
    name: str
    max_uses: int
    uses: int
    needs_approval: bool = False
    expires: datetime
    revoked: datetime | None = None


class _Made(msgspec.Struct):
    key: str
    command: str


class _Keys(msgspec.Struct):
    items: list[InstallKey]
    next: str | None = None


class _Revoked(msgspec.Struct):
    ended: Ended
    disabled: list[str] = []
    removed: list[str] = []


@click.group(
    "install-key",
    epilog=examples(
        ("tunnelmux install-key add line-3 --uses 500 > line-3.key", "For 500 devices."),
        ("tunnelmux install-key ls", "Those that are good, and how often they were used."),
        (
            "tunnelmux install-key revoke line-3 --remove-devices",
            "It was stolen: the devices that came by it go, too.",
        ),
        more="For one device, tunnelmux invite is the usual way.",
    ),
)
def install_key() -> None:
    """Make and revoke keys by which many devices get in."""


@install_key.command(
    epilog=examples(
        (
            "tunnelmux install-key add line-3 > line-3.key",
            "Put the file on each device: tunnelmux-agent pair --install-key-file.",
        )
    )
)
@click.argument("name")
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), default=100, show_default=True, metavar="NUMBER"
)
@click.option(
    "--expires",
    type=click.FloatRange(0.001, 366),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="How long it is good for.",
)
@click.option("--approve", is_flag=True, help="Each device waits until a person approves it.")
@place_options
def add(name: str, uses: int, expires: float, approve: bool, **options: Any) -> int:
    """Make a key called NAME, and print it, only this once."""

    async def work(fleet: ApiFleet) -> None:
        content = {
            "name": name,
            "max_uses": uses,
            "lifetime": max(60.0, expires * 86_400),
            "needs_approval": approve,
        }
        made = await fleet.client.post("/api/install-keys", _Made, content)
        click.echo(f"On each device, with the key in a file: {made.command}", err=True)
        click.echo(made.key)

    return run_at_api(options, work)


@install_key.command("ls", epilog=examples(("tunnelmux install-key ls --json", "For a program.")))
@click.option("--all", "with_ended", is_flag=True, help="Also those that are good no more.")
@json_option
@place_options
def list_keys(with_ended: bool, as_json: bool, **options: Any) -> int:
    """List the keys, the newest first."""

    async def work(fleet: ApiFleet) -> None:
        found = [key for key in await _all(fleet) if with_ended or _state(key) == "good"]
        if as_json:
            print_json(found)
        elif found:
            _print(found)
        else:
            click.echo("There is no install key that is good.", err=True)

    return run_at_api(options, work)


@install_key.command(
    epilog=examples(
        ("tunnelmux install-key revoke line-3", "The devices that came by it stay."),
        ("tunnelmux install-key revoke line-3 --remove-devices", "They go, too, after asking."),
    )
)
@click.argument("key")
@click.option(
    "--disable-devices",
    "devices",
    flag_value="disable",
    help="Also refuse the devices that came by it, until each is enabled.",
)
@click.option(
    "--remove-devices",
    "devices",
    flag_value="remove",
    help="Also remove the devices that came by it, with their tokens.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@place_options
def revoke(key: str, devices: str | None, yes: bool, **options: Any) -> int:
    """End KEY, a name or an id: no device gets in by it any more."""
    found: list[InstallKey] = []

    async def find(fleet: ApiFleet) -> None:
        found.append(_named(key, await _all(fleet)))

    run_at_api(options, find)
    chosen = found[0]
    used = f'The key "{chosen.name}" was used {chosen.uses} times'
    fate = {"remove": "are removed", "disable": "are refused until each is enabled"}
    if devices is not None:
        confirm(f"{used}. The devices that came by it {fate[devices]}.", yes)
    else:
        confirm(f"{used}, and lets no more devices in; those that came by it stay.", yes)

    async def end(fleet: ApiFleet) -> None:
        path = f"/api/install-keys/{chosen.id}/revoke"
        try:
            done = await fleet.client.post(path, _Revoked, {"devices": devices or "keep"})
        except ConnectError as exc:
            # It goes on in parts, and of thousands takes longer than a call may.
            raise ConnectError(f"{exc}: to be sure of all devices, run this again") from exc
        click.echo(f'The key "{chosen.name}" is revoked.')
        for ids, verb in ((done.removed, "Removed"), (done.disabled, "Disabled")):
            if ids:
                click.echo(f"{verb}: {len(ids)} device{'s' if len(ids) > 1 else ''}.")
        tell_ended(done.ended)

    return run_at_api(options, end)


async def _all(fleet: ApiFleet) -> list[InstallKey]:
    return await fleet.pages("/api/install-keys", _Keys, lambda page: (page.items, page.next))


def _named(key: str, known: list[InstallKey]) -> InstallKey:
    """The key of this id, or the only one of this name; of several, the only good one."""
    named = [one for one in known if key in (one.id, one.name)]
    if len(named) > 1:
        named = [one for one in named if _state(one) == "good"] or named
    if not named:
        raise click.ClickException(
            f'There is no install key "{key}": tunnelmux install-key ls --all lists them.'
        )
    if len(named) > 1:
        ids = ", ".join(one.id for one in named[:_SHOWN])
        raise click.ClickException(f'Several install keys are called "{key}": give an id, {ids}.')
    return named[0]


def _state(key: InstallKey) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.expires <= datetime.now(UTC):
        return "expired"
    return "used up" if key.uses >= key.max_uses else "good"


def _print(found: list[InstallKey]) -> None:
    now = datetime.now(UTC)
    print_table(
        [
            Column(title="ID"),
            Column(title="NAME"),
            Column(title="STATE"),
            Column(title="USED", is_number=True),
            Column(title="LEFT", is_number=True),
        ],
        [
            [
                Cell(key.id, "dim"),
                key.name,
                _state(key),
                f"{key.uses} of {key.max_uses}",
                duration((key.expires - now).total_seconds()) if _state(key) == "good" else "",
            ]
            for key in found
        ],
    )
