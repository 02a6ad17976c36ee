"""tunnelmux explain: why a request to a device gets the answer that it gets now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE, SERVICE
from tunnelmux.cli.doctor.findings import Finding, print_finding
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.output import ago, duration, print_json
from tunnelmux.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.model import DeviceDetails

__all__ = ["explain"]

_OFFLINE = 5


@click.command(
    epilog=examples(
        ("tunnelmux explain dev1", "Is it known, let in, connected, and are its services there?"),
        ("tunnelmux explain dev1 web", "Only this service."),
        more="The device connects to each service once, and closes the connection again.",
    )
)
@click.argument("device", type=DEVICE)
@click.argument("service", type=SERVICE, required=False)
@json_option
@place_options
def explain(device: str, service: str | None, as_json: bool, **options: Any) -> int:
    """Explain why a request to DEVICE gets an error now."""

    async def work(fleet: Fleet) -> int:
        found: list[Finding] = []
        async for finding in _findings(fleet, device, service):
            found.append(finding)
            if not as_json:
                print_finding(finding)
        if as_json:
            print_json(found)
        return _OFFLINE if any(item.outcome == "bad" for item in found) else 0

    return run_on_fleet(options, work)


async def _findings(fleet: Fleet, name: str, service: str | None) -> AsyncIterator[Finding]:
    details = await fleet.details(name)  # raises for an unknown name: 404
    yield Finding(check="known", outcome="good", said=f"{name} is known at {fleet.server}")
    state = _state(details)
    yield state
    if state.outcome == "bad":
        return
    known = [item.name for item in details.services]
    wanted = known if service is None else [service]
    if not wanted:
        yield Finding(
            check="services",
            outcome="unknown",
            said="the device does not say which services it has",
            fix=f"name one: tunnelmux explain {name} web",
        )
    for item in wanted:
        yield await _service(fleet, name, item, known)


def _state(details: DeviceDetails) -> Finding:
    from datetime import UTC, datetime

    device = details.device
    why = f": {device.reason}" if device.reason else ""
    match device.state:
        case "disabled":
            return Finding(
                check="let in",
                outcome="bad",
                said="it is disabled: visitors get 503 device-offline",
                fix=f"tunnelmux device enable {device.name}",
            )
        case "quarantined":
            return Finding(
                check="let in",
                outcome="bad",
                said=f"it is held back{why}: visitors get 503 device-offline",
                fix="an operator can release it: DELETE /api/devices/…/quarantine",
            )
        case "offline":
            seen = ago(device.last_seen)
            when = f", last seen {seen}" if seen else ", and never was"
            return Finding(
                check="connected",
                outcome="bad",
                said=f"it is not connected{when}{why}: visitors get 503 device-offline",
                fix="on the device: is tunnelmux-agent running, and what does tunnelmux doctor "
                "--agent agent.toml say?"
                if seen
                else f"pair it: tunnelmux invite --replace {device.name}",
            )
    held = ""
    if device.since is not None:
        held = f" for {duration((datetime.now(UTC) - device.since).total_seconds())}"
    where = f" from {device.address}" if device.address else ""
    return Finding(check="connected", outcome="good", said=f"it is connected{held}{where}")


async def _service(fleet: Fleet, device: str, service: str, known: list[str]) -> Finding:
    import trio

    from tunnelmux.cli.fleet.errors import FleetError, NoSuchThing, NotThere, one_error

    began = trio.current_time()
    try:
        async with one_error(), fleet.connect(device, service):
            took = (trio.current_time() - began) * 1000
    except (FleetError, ConnectError) as exc:
        said = str(exc).removeprefix(f"{device}: ").rstrip(".")
        fix = "see that it runs on the device, and listens at the target in agent.toml"
        status = "502"
        if isinstance(exc, NoSuchThing):
            status = "404 unknown-service"
            fix = f"it has {', '.join(known)}" if known else "declare it in agent.toml"
        elif isinstance(exc, NotThere) and exc.code == "device_offline":
            status = "503 device-offline"
            fix = "it disconnected just now: see the agent's log"
        elif not isinstance(exc, NotThere):
            status, fix = "an error", "see who you are: tunnelmux whoami"
        return Finding(check=service, outcome="bad", said=f"visitors get {status}: {said}", fix=fix)
    return Finding(check=service, outcome="good", said=f"its target answers ({took:.0f} ms)")
