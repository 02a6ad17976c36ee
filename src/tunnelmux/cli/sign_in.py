"""tunnelmux login, logout, whoami: who the other commands act as."""

from __future__ import annotations

import getpass
import os
import platform
import random
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tunnelmux.cli.browser import has_browser
from tunnelmux.cli.fleet_options import examples, json_option, place_options, run_on_fleet
from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.cli.output import print_fields, print_json, styled
from tunnelmux.errors import ConfigError, ConnectError, TunnelmuxError

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.api_client import ApiClient
    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.model import Account
    from tunnelmux.cli.fleet.sign_in_file import SignIn
    from tunnelmux.config import Secret

__all__ = ["login", "logout", "whoami"]


_TRIES = 30
# When others at this address begin many sign-ins, each try has a chance.


class _Waiting(msgspec.Struct):
    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: float
    interval: float = 5.0


class _Answer(msgspec.Struct):
    access_token: str = ""


@click.command(
    epilog=examples(
        ("tunnelmux login https://tunnels.example.com", "Shows a code to confirm in a browser."),
        (
            "TUNNELMUX_TOKEN=tma_… tunnelmux ls",
            "A program needs no login: an access token, and the URL in\nTUNNELMUX_SERVER.",
        ),
    )
)
@click.argument("server", metavar="[URL]", required=False, envvar="TUNNELMUX_SERVER")
@click.option(
    "--ca-file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file of the authority that signed the server's certificate.",
)
@click.option("--no-browser", is_flag=True, help="Only print where to go.")
def login(server: str | None, ca_file: Path | None, no_browser: bool) -> None:
    """Sign in at tunnelmux-api.

    Without URL, at the server of the last sign-in. A browser, on this machine or any other,
    confirms the code that is shown (RFC 8628). The token goes into
    ~/.config/tunnelmux/login.json, which only you can read.
    """
    from tunnelmux.cli.fleet.api_client import ApiClient
    from tunnelmux.cli.fleet.sign_in_file import sign_in_file

    file = sign_in_file(os.environ)
    before = _last_sign_in(file, is_needed=server is None)
    if server is None:
        if before is None:
            raise click.UsageError(
                "which server? Write tunnelmux login https://tunnels.example.com"
            )
        server, ca_file = before.server, ca_file or before.ca_file
    if "://" not in server:
        server = f"https://{server}"
    client = ApiClient(server, None, ca_file=ca_file, environ=os.environ)
    is_same = before is not None and before.server == client.server
    earlier = before.token if before is not None and is_same else None
    account = run_interruptible(_login, client, file, no_browser, earlier)
    who = account.email or account.name or "signed in"  # a provider may tell neither
    click.echo(f"You are {who}, {account.role} of {account.tenant}, at {account.server}.")
    click.echo("Next: tunnelmux ls")


def _last_sign_in(file: Path, *, is_needed: bool) -> SignIn | None:
    from tunnelmux.cli.fleet.sign_in_file import read_sign_in

    try:
        return read_sign_in(file)
    except ConfigError:
        if is_needed:
            raise
        return None  # it is about to be written anew


async def _login(
    client: ApiClient, file: Path, no_browser: bool, earlier: Secret | None
) -> Account:
    from tunnelmux.cli.fleet.by_api import ApiFleet
    from tunnelmux.cli.fleet.sign_in_file import SignIn, write_sign_in
    from tunnelmux.config import Secret

    said = {"client": f"{getpass.getuser()}@{platform.node() or 'somewhere'}"[:100]}
    if earlier is not None:
        said["earlier"] = earlier.reveal()
    waiting = await _ask(client, said)
    click.echo(f"Open {waiting.verification_uri_complete}")
    click.echo(f"and confirm the code {styled(waiting.user_code, 'bold')} there.")
    if not no_browser and has_browser():
        webbrowser.open(waiting.verification_uri_complete)
    click.echo(f"Waiting for {waiting.expires_in / 60:.0f} minutes …", err=True)
    client.token = Secret(await _wait(client, waiting))
    account = await ApiFleet(client).account()
    write_sign_in(file, SignIn(server=client.server, token=client.token, ca_file=client.ca_file))
    return account


async def _ask(client: ApiClient, said: dict[str, str]) -> _Waiting:
    import trio

    from tunnelmux.cli.fleet.errors import FleetError

    for tried in range(_TRIES):
        try:
            return await client.post("/api/auth/terminal", _Waiting, said)
        except FleetError as exc:
            if exc.code != "too_many_requests":
                raise
            if tried == 0:
                seconds = _TRIES * (max(exc.wait, 0.5) + 0.5)
                click.echo(f"{exc}. Trying again for {seconds:.0f} s …", err=True)
            # Not in step with others that are refused.
            await trio.sleep(max(exc.wait, 0.5) + random.random())  # noqa: S311  no secret
    return await client.post("/api/auth/terminal", _Waiting, said)


async def _wait(client: ApiClient, waiting: _Waiting) -> str:
    import trio

    from tunnelmux.cli.fleet.errors import NotAllowed

    asked = {"device_code": waiting.device_code}
    with trio.move_on_after(waiting.expires_in + waiting.interval):
        while True:
            await trio.sleep(waiting.interval)
            try:
                answer = await client.post("/api/auth/terminal/poll", _Answer, asked)
            except ConnectError:
                continue  # the network is gone for a moment
            except TunnelmuxError as exc:
                raise NotAllowed(str(exc)) from exc
            if answer.access_token:
                return answer.access_token
    raise NotAllowed("the code was not confirmed in time: run tunnelmux login again")


@click.command(epilog=examples(("tunnelmux logout", "End the token, here and at the server.")))
def logout() -> None:
    """Sign out.

    The token is revoked at the server, and its file is removed.
    """
    from tunnelmux.cli.fleet.api_client import ApiClient
    from tunnelmux.cli.fleet.errors import NotAllowed
    from tunnelmux.cli.fleet.sign_in_file import forget_sign_in, read_sign_in, sign_in_file

    file = sign_in_file(os.environ)
    found = read_sign_in(file)
    if found is None:
        click.echo("You are not signed in.")
        return
    client = ApiClient(found.server, found.token, ca_file=found.ca_file, environ=os.environ)

    async def end() -> None:
        await client.call("POST", "/api/auth/logout", {})

    try:
        run_interruptible(end)
    except NotAllowed:
        pass  # the token was void already
    except ConnectError as exc:
        forget_sign_in(file)
        raise ConfigError(
            f"{file} is removed, but the token could not be revoked at the server: {exc}. It "
            "expires by itself, or revoke it there"
        ) from exc
    forget_sign_in(file)
    click.echo(f"Signed out at {found.server}.")


@click.command(epilog=examples(("tunnelmux whoami", "Who the commands act as, and where.")))
@json_option
@place_options
def whoami(as_json: bool, **options: Any) -> int:
    """Show who you are signed in as."""

    async def work(fleet: Fleet) -> None:
        account = await fleet.account()
        if as_json:
            print_json(account)
            return
        print_fields(
            [
                ("Server", account.server),
                ("Name", account.name),
                ("E-mail", account.email),
                ("Tenant", account.tenant),
                ("Role", account.role),
                ("By", "a proxy's internal API" if account.way == "proxy" else ""),
            ]
        )

    return run_on_fleet(options, work)
