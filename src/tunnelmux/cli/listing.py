"""tunnelmux ls, show: which devices there are, and all about one of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.output import (
    Cell,
    Column,
    ago,
    duration,
    print_fields,
    print_json,
    print_table,
    size,
    styled,
)

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.model import Device, DeviceDetails

__all__ = ["ls", "print_devices", "show"]

_STATES = {"online": "good", "offline": "dim", "disabled": "warn", "quarantined": "bad"}


@click.command(
    epilog=examples(
        ("tunnelmux ls", "All devices."),
        ("tunnelmux ls cam --online", 'Those that have "cam" in their name and are connected.'),
        ("tunnelmux ls --json | jq -r '.[].name'", "Their names, for a script."),
    )
)
@click.argument("part", required=False, default="")
@click.option("--online", is_flag=True, help="Only those that are connected.")
@json_option
@place_options
def ls(part: str, online: bool, as_json: bool, **options: Any) -> int:
    """List devices.

    With PART, those that have it in their name or serial number.
    """

    async def work(fleet: Fleet) -> None:
        found = await fleet.devices(part)
        if online:
            found = [device for device in found if device.state == "online"]
        if as_json:
            print_json(found)
        elif found:
            print_devices(found)
        else:
            click.echo(_nothing(part, online) or fleet.how_to_begin, err=True)

    return run_on_fleet(options, work)


def _nothing(part: str, online: bool) -> str:
    if part:
        return f'No device has "{part}" in its name.'
    if online:
        return "No device is connected."
    return ""


def print_devices(devices: list[Device]) -> None:
    """The table of `ls`."""
    now = datetime.now(UTC)
    columns = [
        Column(title="DEVICE"),
        Column(title="STATE"),
        Column(title="FOR", is_number=True),
        Column(title="ADDRESS", is_spare=True),
        Column(title="VERSION", is_spare=True),
        Column(title="SERVICES", is_spare=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            device.name,
            Cell(device.state, _STATES[device.state]),
            duration((now - device.since).total_seconds()) if device.since else "",
            device.address,
            device.version,
            ", ".join(device.services),
        ]
        for device in devices
    ]
    print_table(columns, rows)


@click.command(
    epilog=examples(
        ("tunnelmux show dev1", "Its state, its services, and who uses it now."),
        ("tunnelmux show dev1 --json", "The same for a program."),
    )
)
@click.argument("device", type=DEVICE)
@json_option
@place_options
def show(device: str, as_json: bool, **options: Any) -> int:
    """Show all that is known of DEVICE."""

    async def work(fleet: Fleet) -> None:
        details = await fleet.details(device)
        if as_json:
            print_json(details)
        else:
            _print_details(details)

    return run_on_fleet(options, work)


def _print_details(details: DeviceDetails) -> None:
    device = details.device
    state: str = device.state
    if device.since is not None:
        held = duration((datetime.now(UTC) - device.since).total_seconds())
        state = f"{state} for {held}"
    services = ", ".join(
        f"{item.name}{f' ({item.scheme})' if item.scheme else ''}{' *' if item.default else ''}"
        for item in details.services
    )
    print_fields(
        [
            ("Device", Cell(device.name, "bold")),
            ("State", Cell(state, _STATES[device.state])),
            ("Reason", device.reason),
            ("Last seen", "" if device.state == "online" else ago(device.last_seen)),
            ("Address", device.address),
            ("Agent", device.version),
            ("Services", services),
            ("Serial", device.serial),
            ("Labels", ", ".join(f"{key}={value}" for key, value in device.labels.items())),
            ("Paired by", details.paired_by),
            ("Added", ago(details.created)),
            ("Token", "a new one was asked for" if details.rotation_wanted else ""),
            ("Id", device.id),
        ]
    )
    if not details.visits:
        return
    click.echo("\n" + styled("Who uses it now", "bold"))
    now = datetime.now(UTC)
    print_table(
        [
            Column(title="WAY"),
            Column(title="SERVICE"),
            Column(title="VISITOR"),
            Column(title="FOR", is_number=True),
            Column(title="TO DEVICE", is_number=True, is_spare=True),
            Column(title="FROM DEVICE", is_number=True, is_spare=True),
        ],
        [
            [
                visit.way,
                visit.service,
                visit.visitor,
                duration((now - visit.since).total_seconds()),
                size(visit.bytes_in),
                size(visit.bytes_out),
            ]
            for visit in details.visits
        ],
    )
