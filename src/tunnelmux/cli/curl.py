"""tunnelmux curl: a request to a service of a device, by curl itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.device_names import DEVICE_AND_PATH
from tunnelmux.cli.fleet_options import examples, place_options, run_on_fleet
from tunnelmux.errors import ConfigError

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.fleet import Fleet, HttpAccess

__all__ = ["curl"]


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        ("tunnelmux curl dev1/web/", "The front page of its service web."),
        (
            'tunnelmux curl dev1/web/api/items --json \'{"name": "x"}\'',
            "Options after the path are passed to curl.",
        ),
        ("tunnelmux curl 'dev1/web/search?q=a&n=10' -sS -o found.html", "Quote a query."),
        more="Exit status: that of curl; 2 to 5 as below when it could not be started.",
    ),
)
@place_options
@click.argument("target", metavar="DEVICE/SERVICE/PATH", type=DEVICE_AND_PATH)
@click.argument("curl_options", metavar="[CURL-OPTION...]", nargs=-1, type=click.UNPROCESSED)
def curl(target: str, curl_options: tuple[str, ...], **options: Any) -> int:
    """Call an HTTP service of a device with curl."""
    device, _, rest = target.partition("/")
    service, slash, path = rest.partition("/")
    if not device or not service:
        raise click.UsageError(f'"{target}" names no service: write it like dev1/web/path')
    program = shutil.which("curl")
    if program is None:
        raise ConfigError("curl is not installed: apt-get install curl")

    async def work(fleet: Fleet) -> int:
        async with fleet.http(device, service) as access:
            return await _run(program, access, f"{slash or '/'}{path}", curl_options)

    return run_on_fleet(options, work)


async def _run(program: str, access: HttpAccess, path: str, words: tuple[str, ...]) -> int:
    import trio

    # By a pipe: every user of this machine can read a command line.
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as config:
        if access.token is not None:
            config.write(f'header = "Authorization: Bearer {access.token.reveal()}"\n')
        if access.service is not None:
            config.write(f'header = "Tunnelmux-Service: {access.service}"\n')
        if access.socket is not None:
            config.write(f'unix-socket = "{access.socket}"\n')
        if access.ca_file is not None:
            config.write(f'cacert = "{access.ca_file}"\n')
    sys.stdout.flush()
    try:
        done: subprocess.CompletedProcess[bytes] = await trio.run_process(
            [program, "--config", f"/dev/fd/{reading}", f"{access.url}{path}", *words],
            stdin=None,
            check=False,
            pass_fds=(reading,),
        )
    finally:
        os.close(reading)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
