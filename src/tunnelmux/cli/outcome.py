"""How a command ends: what is printed, and the exit status.

0  all went well, a drain included
1  it failed, or a second signal cut the drain short
2  a wrong option or setting, or an address that cannot be listened on: a person must change it
3  the proxy refused this agent for good, or the person is not signed in or may not do this:
   trying again cannot help
4  no such device or service
5  the device is offline or does not answer
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from tunnelmux.errors import ConfigError, ConnectError, TunnelmuxError
from tunnelmux.printable import printable

__all__ = ["EXIT_CUT_SHORT", "run_command"]

EXIT_CUT_SHORT = 1
_EXIT_FAILED = 1
_EXIT_CONFIG = 2
_EXIT_REFUSED = 3
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


def run_command(
    command: click.Command,
    program: str,
    arguments: Sequence[str] | None = None,
    given: object = None,
) -> NoReturn:
    """Run `command` with these arguments, by default the process's, and exit. Its context has what
    is `given`.

    An error of ours is one line on standard error; anything else is a bug and keeps its traceback.
    """
    _show_what_the_terminal_can()
    try:
        status = command.main(args=arguments, prog_name=program, standalone_mode=False, obj=given)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_EXIT_INTERRUPTED)
    except Exception as error:
        known = _known_error(error)
        if known is None:
            raise
        # Lines of their own have only our own errors, as those about a configuration.
        text = "\n".join(printable(line) for line in str(known).split("\n"))
        click.echo(f"{program}: error: {text}", err=True)
        sys.exit(_exit_status(known))
    sys.exit(status if isinstance(status, int) else 0)


def _show_what_the_terminal_can() -> None:
    """Where it is not UTF-8, a character that it does not have is shown as `?`, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _known_error(error: Exception) -> TunnelmuxError | None:
    """The error to report: a nursery may have wrapped it, alone or with others of its kind."""
    if isinstance(error, TunnelmuxError):
        return error
    if isinstance(error, ExceptionGroup):
        known = [_known_error(inner) for inner in error.exceptions]
        if all(known):
            return known[0]
    return None


def _exit_status(error: TunnelmuxError) -> int:
    if isinstance(error, ConfigError):
        return _EXIT_CONFIG
    status: int | None = getattr(error, "exit_status", None)
    if status is not None:
        return status
    if isinstance(error, ConnectError) and not error.retryable:
        return _EXIT_REFUSED
    return _EXIT_FAILED
