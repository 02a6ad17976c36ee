"""tunnelmux device …, invite …: add and remove devices. For installations with tunnelmux-api."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from tunnelmux.cli.device_names import DEVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_at_api
from tunnelmux.cli.output import Cell, Column, duration, print_json, print_table
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.by_api import ApiFleet

__all__ = ["Ended", "confirm", "device", "invite", "tell_ended"]

T = TypeVar("T")


class Ended(msgspec.Struct):
    """What a change has ended, and the proxies that did not confirm it."""

    sessions: int
    visits: int
    missing: list[str] = []


class _Changed(msgspec.Struct):
    ended: Ended


class _WithToken(msgspec.Struct):
    token: str
    ended: Ended | None = None


class Invitation(msgspec.Struct, kw_only=True):
    """A code that lets one device in, or a device that asks to be let in."""

    id: str
    kind: str
    state: str
    name: str = ""
    serial: str = ""
    address: str = ""
    fingerprint: str = ""
    created: datetime
    expires: datetime


class _Made(msgspec.Struct):
    pairing: Invitation
    code: str
    command: str


class _Invitations(msgspec.Struct):
    items: list[Invitation]
    next: str | None = None


def confirm(question: str, yes: bool) -> None:
    """Ask the person at the terminal; a program has to give --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say so with --yes.")
    click.confirm(question, abort=True, err=True)


def tell_ended(ended: Ended) -> None:
    """Tell a person what a change has ended."""
    parts = []
    if ended.sessions:
        parts.append("its tunnel" if ended.sessions == 1 else f"{ended.sessions} tunnels")
    if ended.visits:
        parts.append(f"{ended.visits} visit{'s' if ended.visits > 1 else ''}")
    if parts:
        click.echo(f"Ended: {' and '.join(parts)}.")
    if ended.missing:
        click.echo(f"Not confirmed within 2 s by: {', '.join(ended.missing)}.", err=True)


@click.group(
    epilog=examples(
        ("tunnelmux device disable dev1", "Refuse it until it is enabled."),
        ("tunnelmux device revoke dev1 --yes", "Its token was lost: it has to be paired again."),
        more="To let a new device in, tunnelmux invite is the usual way.",
    )
)
def device() -> None:
    """Add, rename, disable or revoke devices."""


@device.command(
    epilog=examples(
        ("tunnelmux device add dev7 > dev7.token", "The token goes to standard output, once.")
    )
)
@click.argument("name")
@click.option("--serial", default="", metavar="SERIAL", help="Its serial number.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="A serial number, by which it can be found too.",
)
@place_options
def add(name: str, serial: str, labels: tuple[str, ...], **options: Any) -> int:
    """Add a device by hand, and print the token that it connects with."""
    wanted = dict(_label(text) for text in labels)

    async def work(fleet: ApiFleet) -> None:
        content = {"name": name, "serial": serial, "labels": wanted}
        made = await fleet.client.post("/api/devices", _WithToken, content)
        click.echo(f"{name} is known. Its token, which is shown only this once:", err=True)
        click.echo(made.token)

    return run_at_api(options, work)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f'"{text}" is not KEY=VALUE', param_hint="--label")
    return key, value


@device.command(epilog=examples(("tunnelmux device rename dev1 gate-north", "At once.")))
@click.argument("device", type=DEVICE)
@click.argument("name")
@place_options
def rename(device: str, name: str, **options: Any) -> int:
    """Give DEVICE another NAME. Its tunnel ends and comes back under the new one."""

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}"
        await fleet.client.call("PATCH", path, {"name": name})
        click.echo(f"{device} is called {name} now.")

    return run_at_api(options, work)


@device.command(epilog=examples(("tunnelmux device enable dev1", "Let it connect again.")))
@click.argument("device", type=DEVICE)
@place_options
def enable(device: str, **options: Any) -> int:
    """Let a device that was disabled connect again."""

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}/enable"
        await fleet.client.post(path, _Changed)
        click.echo(f"{device} may connect.")

    return run_at_api(options, work)


@device.command(epilog=examples(("tunnelmux device disable dev1", "Its tunnel ends within 2 s.")))
@click.argument("device", type=DEVICE)
@place_options
def disable(device: str, **options: Any) -> int:
    """Refuse DEVICE until it is enabled; its tunnel and visits end."""

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}/disable"
        changed = await fleet.client.post(path, _Changed)
        click.echo(f"{device} is disabled.")
        tell_ended(changed.ended)

    return run_at_api(options, work)


@device.command(epilog=examples(("tunnelmux device revoke dev1", "After asking.")))
@click.argument("device", type=DEVICE)
@click.option("--yes", is_flag=True, help="Do not ask.")
@place_options
def revoke(device: str, yes: bool, **options: Any) -> int:
    """End the tokens of DEVICE.

    It stays known, and has to be paired again.
    """
    confirm(f"{device} will not get in any more until it is paired again at the device.", yes)

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}/revoke"
        changed = await fleet.client.post(path, _Changed)
        click.echo(f"{device} is out. To let it in again: tunnelmux invite --replace {device}")
        tell_ended(changed.ended)

    return run_at_api(options, work)


@device.command(
    epilog=examples(
        (
            "tunnelmux device rotate dev1",
            "The device gets it over its tunnel, and stays connected.",
        ),
        ("tunnelmux device rotate dev1 --by-hand", "Print a new one, and end the old one now."),
    )
)
@click.argument("device", type=DEVICE)
@click.option("--by-hand", is_flag=True, help="Print the new token, to be copied to the device.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@place_options
def rotate(device: str, by_hand: bool, yes: bool, **options: Any) -> int:
    """Give DEVICE a new token."""
    if by_hand:
        confirm(f"The tunnel of {device} ends until it has the new token.", yes)

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}/credentials"
        if not by_hand:
            await fleet.client.call("POST", f"{path}/rotate", {})
            click.echo(f"{device} gets a new token as soon as it is connected.")
            return
        made = await fleet.client.post(f"{path}/replace", _WithToken)
        if made.ended is not None:
            click.echo("The old token has ended.", err=True)
        click.echo(made.token)

    return run_at_api(options, work)


class HostKey(msgspec.Struct):
    """A host key of a device's SSH server."""

    type: str
    fingerprint: str


class HostKeys(msgspec.Struct):
    """Those that the gateway accepts, and new ones that wait to be accepted."""

    pinned: list[HostKey]
    reported: list[HostKey]


@device.command(
    "host-keys",
    epilog=examples(
        ("tunnelmux device host-keys dev1", "Those the gateway accepts, and new ones."),
        ("tunnelmux device host-keys dev1 --accept", "Its sshd was installed anew."),
    ),
)
@click.argument("device", type=DEVICE)
@click.option("--accept", is_flag=True, help="Accept the new ones, in place of those before.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@place_options
def show_host_keys(device: str, accept: bool, yes: bool, as_json: bool, **options: Any) -> int:
    """Show the host keys of DEVICE's SSH server, or accept new ones."""

    async def work(fleet: ApiFleet) -> None:
        path = f"/api/devices/{await fleet.find_id(device)}/ssh-host-keys"
        found = await fleet.client.get(path, HostKeys)
        if accept:
            new = [key.fingerprint for key in found.reported]
            if not new:
                raise click.ClickException(f"No new host keys of {device} wait to be accepted.")
            confirm(f"Does the SSH server of {device} show {', '.join(new)}?", yes)
            found = await fleet.client.post(f"{path}/accept", HostKeys, {"fingerprints": new})
        if as_json:
            print_json(found)
            return
        listed = [("accepted", key) for key in found.pinned]
        listed += [("new", key) for key in found.reported]
        if not listed:
            click.echo(f"No host key of {device} is known yet.", err=True)
            return
        print_table(
            [Column(title="STATE"), Column(title="TYPE"), Column(title="FINGERPRINT")],
            [[state, key.type, key.fingerprint] for state, key in listed],
        )

    return run_at_api(options, work)


@click.group(
    invoke_without_command=True,
    epilog=examples(
        ("tunnelmux invite --name dev7", "A code, and the command to type on the device."),
        ("tunnelmux invite --replace dev1", "For a new machine in the place of dev1."),
        ("tunnelmux invite ls", "Codes that are open, and devices that wait."),
        ("tunnelmux invite approve BCDF-GHJK --name dev8", "A device that shows this code."),
    ),
)
@click.option("--name", metavar="NAME", default="", help="The name that the device gets.")
@click.option("--serial", metavar="SERIAL", default="", help="Only this device may use it.")
@click.option("--replace", metavar="DEVICE", type=DEVICE, help="Whose place it takes.")
@click.option(
    "--expires",
    metavar="MINUTES",
    type=click.FloatRange(1, 1440),
    help="How long the code is good for, up to a day.  [default: as the server has it, 10]",
)
@json_option
@place_options
@click.pass_context
def invite(
    context: click.Context,
    /,
    name: str,
    serial: str,
    replace: str | None,
    expires: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Let a device in.

    By a code that is made here, or by approving the code that the device shows.
    """
    if context.invoked_subcommand is not None:
        return 0
    if name and replace:
        raise click.UsageError("--replace keeps the old name: leave out --name")

    async def work(fleet: ApiFleet) -> None:
        content: dict[str, Any] = {"name": name, "serial": serial}
        if replace is not None:
            content["replace"] = await fleet.find_id(replace)
        if expires is not None:
            content["lifetime"] = expires * 60
        made = await fleet.client.post("/api/pairings", _Made, content)
        if as_json:
            print_json(made)
            return
        left = duration((made.pairing.expires - datetime.now(UTC)).total_seconds() + 1)
        what = f"The code for {made.pairing.name}" if made.pairing.name else "The code"
        click.echo(f"{what}, good once and for {left}: {made.code}")
        click.echo(f"On the device: {made.command}")

    return run_at_api(options, work)


@invite.command("ls", epilog=examples(("tunnelmux invite ls --json", "For a program.")))
@json_option
@place_options
def list_invitations(as_json: bool, **options: Any) -> int:
    """List codes that are open, and devices that wait to be let in."""

    async def work(fleet: ApiFleet) -> None:
        found = await fleet.pages(
            "/api/pairings", _Invitations, lambda page: (page.items, page.next), waiting="true"
        )
        if as_json:
            print_json(found)
        elif found:
            _print_invitations(found)
        else:
            click.echo("There are no open codes, and no device waits for approval.", err=True)

    return run_at_api(options, work)


def _print_invitations(found: list[Invitation]) -> None:
    now = datetime.now(UTC)
    kinds = {"console": "code", "device": "waits"}
    print_table(
        [
            Column(title="ID"),
            Column(title="KIND"),
            Column(title="NAME"),
            Column(title="SERIAL", is_spare=True),
            Column(title="FROM", is_spare=True),
            Column(title="LEFT", is_number=True),
        ],
        [
            [
                Cell(item.id, "dim"),
                kinds.get(item.kind, item.kind),
                item.name,
                item.serial,
                item.address,
                duration((item.expires - now).total_seconds()),
            ]
            for item in found
        ],
    )


@invite.command(epilog=examples(("tunnelmux invite cancel ID", "An id of tunnelmux invite ls.")))
@click.argument("id")
@place_options
def cancel(id: str, **options: Any) -> int:
    """Withdraw a code, or refuse a device that waits for approval."""

    async def work(fleet: ApiFleet) -> None:
        await fleet.client.call("POST", f"/api/pairings/{id}/deny", {})
        click.echo("It is no longer valid.")

    return run_at_api(options, work)


@invite.command(
    epilog=examples(("tunnelmux invite approve BCDF-GHJK", "Under the name that it asks for."))
)
@click.argument("code")
@click.option("--name", metavar="NAME", default="", help="Its name from now on.")
@click.option("--replace", metavar="DEVICE", type=DEVICE, help="Whose place it takes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@place_options
def approve(code: str, name: str, replace: str | None, yes: bool, **options: Any) -> int:
    """Let the device in that shows CODE."""
    shown: list[Invitation] = []

    async def find(fleet: ApiFleet) -> None:
        shown.append(await fleet.client.post("/api/pairings/find", Invitation, {"code": code}))

    run_at_api(options, find)
    found = shown[0]
    called = name or found.name or replace or ""
    if not called:
        raise click.UsageError("the device gives no name: choose one with --name")
    about = f"{printable(found.name) or 'A device'} at {found.address}"
    marks = f", key {printable(found.fingerprint)}" if found.fingerprint else ""
    confirm(f"{about}{marks} will be let in as {called}.", yes)

    async def let_in(fleet: ApiFleet) -> None:
        content: dict[str, Any] = {"name": called}
        if replace is not None:
            content["replace"] = await fleet.find_id(replace)
        await fleet.client.call("POST", f"/api/pairings/{found.id}/approve", content)
        click.echo(f"{called} is let in; it connects by itself.")

    return run_at_api(options, let_in)
