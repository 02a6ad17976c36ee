"""Options that all commands for people share, and how these commands are run."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.cli.options import print_warning, shown_examples
from tunnelmux.errors import ConnectError, TunnelmuxError

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.by_api import ApiFleet
    from tunnelmux.cli.fleet.fleet import Fleet
    from tunnelmux.cli.fleet.opening import Place

__all__ = [
    "EXIT_STATUSES",
    "OWN_VARIABLES",
    "examples",
    "explained",
    "json_option",
    "place_arguments",
    "place_of",
    "place_options",
    "run_at_api",
    "run_on_fleet",
]

F = TypeVar("F", bound=Callable[..., Any])

_EXIT_READER_GONE = 141  # 128 + SIGPIPE, what a shell expects

OWN_VARIABLES = frozenset(
    {
        *("TUNNELMUX_SERVER", "TUNNELMUX_TOKEN", "TUNNELMUX_API_URL"),
        *("TUNNELMUX_API_SECRET_FILE", "TUNNELMUX_API_CA_FILE"),
    }
)
"""Environment variables that name the fleet for these commands."""

EXIT_STATUSES = """\
Exit status: 0 done, 1 failed, 2 wrong option or setting, 3 not signed
in or not allowed, 4 no such device or service, 5 the device is offline
or does not answer, 130 interrupted."""


def place_options(function: F) -> F:
    """Where the fleet is: without any of these, where the person is signed in."""
    for decorate in (
        click.option(
            "--ca-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            envvar="TUNNELMUX_API_CA_FILE",
            help="PEM file of the authority that signed the server's certificate (also "
            "TUNNELMUX_API_CA_FILE).",
        ),
        click.option(
            "--secret-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            envvar="TUNNELMUX_API_SECRET_FILE",
            help="A file that holds [internal] secret of proxy.toml (also "
            "TUNNELMUX_API_SECRET_FILE).",
        ),
        click.option(
            "--url",
            metavar="URL",
            envvar="TUNNELMUX_API_URL",
            help="A proxy's internal API, where there is no tunnelmux-api to sign in at (also "
            "TUNNELMUX_API_URL).  [default: where you are signed in; else http://127.0.0.1:3801]",
        ),
    ):
        function = decorate(function)
    return function


def explained(place: Place, error: TunnelmuxError) -> TunnelmuxError | str:
    """The error; or, if no server was named, a sentence that says so."""
    if place.is_guess and isinstance(error, ConnectError):
        return (
            f"you are not signed in, and no proxy answers at {place.url} ({error}): run "
            "tunnelmux login URL, or name a proxy's internal API with --url"
        )
    if place.is_guess and place.secret is None and getattr(error, "code", "") == "UNAUTHORIZED":
        return (
            f"you are not signed in, and the proxy at {place.url} asks for its secret: run "
            "tunnelmux login URL, or give --secret-file FILE with [internal] secret of its "
            "proxy.toml"
        )
    return error


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")


def examples(*pairs: tuple[str, str], more: str = "") -> str:
    """The end of a command's help: what to type and what it does, then the exit statuses."""
    further = [f"\b\n{more}"] if more else []
    return "\n\n".join([shown_examples(*pairs), *further, f"\b\n{EXIT_STATUSES}"])


def place_of(options: dict[str, Any]) -> Place:
    """The place that the options of `place_options` name. Warns on standard error."""
    from tunnelmux.cli.fleet.opening import find_place

    place = find_place(options["url"], options["secret_file"], options["ca_file"])
    for warning in place.warnings:
        print_warning("tunnelmux", warning)
    return place


def place_arguments(options: dict[str, Any]) -> list[str]:
    """The same options as words, for a command line that another program runs."""
    words: list[str] = []
    if options["url"] is not None:
        words += ["--url", options["url"]]
    for name in ("secret_file", "ca_file"):
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(Path(options[name]).absolute())]
    return words


def run_on_fleet(options: dict[str, Any], work: Callable[[Fleet], Awaitable[int | None]]) -> int:
    """Run `work` with the fleet that the options name: the exit status."""
    place = place_of(options)
    # Trio and HTTP take a moment to import, which --help does not need.

    from tunnelmux.cli.fleet.errors import NotAllowed, one_error
    from tunnelmux.cli.fleet.opening import open_fleet

    async def run() -> int:
        async with one_error(), open_fleet(place) as fleet:
            return await work(fleet) or 0

    try:
        return run_interruptible(run)
    except (ConnectError, NotAllowed) as exc:
        if (said := explained(place, exc)) is exc:
            raise
        raise NotAllowed(str(said)) from exc
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_READER_GONE


def run_at_api(options: dict[str, Any], work: Callable[[ApiFleet], Awaitable[None]]) -> int:
    """The same for work that only tunnelmux-api can do: at a proxy alone it is refused."""

    async def at_api(fleet: Fleet) -> None:
        from tunnelmux.cli.fleet.by_api import ApiFleet

        if not isinstance(fleet, ApiFleet):
            raise fleet.administration_missing()
        await work(fleet)

    return run_on_fleet(options, at_api)
