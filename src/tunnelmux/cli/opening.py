"""tunnelmux open: a web service of a device in the browser, by a link that expires."""

from __future__ import annotations

import webbrowser
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tunnelmux.cli.browser import has_browser
from tunnelmux.cli.device_names import DEVICE, SERVICE
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_at_api
from tunnelmux.cli.output import duration, print_json

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.by_api import ApiFleet

__all__ = ["open_device"]


class _Link(msgspec.Struct):
    id: str
    ends: datetime


class _Made(msgspec.Struct):
    link: _Link
    url: str


@click.command(
    "open",
    epilog=examples(
        ("tunnelmux open dev1", "Its web page, in your browser, for an hour."),
        ("tunnelmux open dev1 camera --for 10", "Another service, for ten minutes."),
        ("tunnelmux open dev1 --once --no-browser", "A link to give away, good in one browser."),
    ),
)
@click.argument("device", type=DEVICE)
@click.argument("service", type=SERVICE, required=False, default="")
@click.option(
    "--for",
    "minutes",
    metavar="MINUTES",
    type=click.FloatRange(1, 44_640),
    default=60.0,
    show_default=True,
    help="How long the link is valid.",
)
@click.option("--once", is_flag=True, help="Valid only in the first browser that opens it.")
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@json_option
@place_options
def open_device(
    device: str,
    service: str,
    minutes: float,
    once: bool,
    no_browser: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Open a web service of DEVICE in the browser.

    By a signed link. All who have it may visit the service until it expires.
    """

    async def work(fleet: ApiFleet) -> None:
        from tunnelmux.cli.fleet.fleet import check_service

        if service:
            check_service(await fleet.details(device), service)
        path = f"/api/devices/{await fleet.find_id(device)}/links"
        content = {"service": service, "lifetime": minutes * 60, "once": once}
        made = await fleet.client.post(path, _Made, content)
        if as_json:
            print_json(made)
            return
        left = duration((made.link.ends - datetime.now(UTC)).total_seconds() + 1)
        click.echo(made.url)
        click.echo(f"Valid for {left}, for all who have it.", err=True)
        if not no_browser and has_browser():
            webbrowser.open(made.url)

    return run_at_api(options, work)
