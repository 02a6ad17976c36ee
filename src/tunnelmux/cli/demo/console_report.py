"""What `tunnelmux demo --console` prints, and how it starts."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from rich.text import Text

from tunnelmux.api.quickstart import OWNER
from tunnelmux.cli.demo.checks import Check
from tunnelmux.cli.demo.console_cast import ACCOUNT, ASKING, HELPER, WAITING
from tunnelmux.cli.demo.console_path import console_checks
from tunnelmux.cli.demo.console_stage import (
    PREFERRED,
    ConsolePorts,
    ConsoleStage,
    running_console,
)
from tunnelmux.cli.demo.report import Report, StageReport
from tunnelmux.cli.demo.run import Demo

__all__ = ["ConsoleReport", "console_demo"]


class ConsoleReport(StageReport[ConsoleStage]):
    """What is said of a whole installation."""

    def _picture(self, stage: ConsoleStage) -> None:
        self._line(
            Text.assemble(
                "  you ──► ",
                (f"console :{stage.url.rpartition(':')[2].rstrip('/')}", "bold cyan"),
                " ──► ",
                (f"proxy :{stage.http.port}", "bold cyan"),
                " ◄═══ tunnels ═══ ",
                ("camera, meter, till", "bold magenta"),
            )
        )

    def _next(self, stage: ConsoleStage, *, stays: bool) -> None:
        if not stays:
            return
        self._heading("Open")
        self._line(Text.assemble("  ", (stage.url, f"bold underline link {stage.url}")))
        self._line(
            Text.assemble('  Type "', (OWNER, "bold"), '" as the sub, and press Authorize. In a ')
            + Text.assemble('private window, be "', (HELPER, "bold"), '", who may look only.')
        )
        self._heading("Look at")
        for what, where in (
            (f"Overview: a person at {ASKING} asks for help", ""),
            (f"Inbox: {WAITING} wants in, and {HELPER} wants to help at {ASKING}", "inbox"),
            (f'Devices, camera, "Terminal": as {ACCOUNT}, by the gateway, recorded', "devices"),
            ("Requests to a device as they come, and what is in them", "devices"),
            ("Audit: all of it, with who did it", "audit"),
        ):
            self._command(f"{stage.url}{where}", what)
        self._command(stage.page_url("camera"), "camera's page: sign in, and it is yours")
        self._console.print()
        self._line(
            Text(
                "Everybody on this machine can sign in as anybody; all of it is gone at the end.",
                "dim",
            )
        )
        self._line(Text(f"Running at {stage.url} until Ctrl-C.", "bold"))


def console_demo(
    report: Report[ConsoleStage], *, once: bool, preferred: ConsolePorts = PREFERRED
) -> Demo[ConsoleStage]:
    """A whole installation with its console, in a folder that goes with it."""
    return Demo(report, partial(_console, once, preferred), once=once)


@asynccontextmanager
async def _console(
    once: bool, preferred: ConsolePorts, say: Callable[[str], None]
) -> AsyncIterator[tuple[ConsoleStage, Sequence[Check]]]:
    with tempfile.TemporaryDirectory(prefix="tunnelmux-") as folder:
        async with (
            running_console(say, Path(folder), preferred=preferred) as stage,
            console_checks(stage, once=once) as checks,
        ):
            yield stage, checks
