"""What the demo prints: its steps, a table of what happened, and what to type next."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from tunnelmux.cli.demo.checks import Check, Result
from tunnelmux.cli.demo.stage import DEVICE, Stage

__all__ = ["JsonReport", "Report", "Shown", "StageReport", "TextReport"]


class Shown(Protocol):
    """What every stage of the demo can say about itself."""

    @property
    def moved(self) -> dict[int, int]:
        """Preferred ports that others have, and the ports used instead."""

    def facts(self) -> dict[str, str]:
        """Where everything is, for programs."""


S = TypeVar("S", bound=Shown)
S_contra = TypeVar("S_contra", bound=Shown, contravariant=True)


class Report(AbstractContextManager[object], Protocol[S_contra]):
    """Is told what happens; a context manager for the time that the demo runs."""

    def step(self, sentence: str) -> None:
        """Something has started."""

    def checking(self, check: Check) -> None:
        """This check begins."""

    def show(self, stage: S_contra, results: list[Result], *, stays: bool) -> None:
        """All checks are done; `stays` says whether the demo goes on running."""

    def stopping(self) -> None:
        """The user ends the demo."""


class _StandardOutput(Console):
    """Stops writing when its reader leaves (`tunnelmux demo --once | head`); the demo goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is still buffered must not fail either, at the very end.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class JsonReport(Report[Shown]):
    """One JSON object on standard output, and nothing else."""

    def __exit__(self, *_exc: object) -> None:
        pass

    def step(self, sentence: str) -> None:
        pass

    def checking(self, check: Check) -> None:
        pass

    def show(self, stage: Shown, results: list[Result], *, stays: bool) -> None:
        value = {
            "passed": all(result.passed for result in results),
            "running": stays,
            "checks": [asdict(result) for result in results],
            **stage.facts(),
        }
        console = _StandardOutput(soft_wrap=True, markup=False, highlight=False)
        console.print(json.dumps(value, indent=2))

    def stopping(self) -> None:
        pass


class StageReport(Report[S], Generic[S]):
    """For people: colours and a spinner on a terminal, plain text elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _StandardOutput(highlight=False)
        self._unicode = self._console.encoding.lower().startswith("utf")
        self._spinner: Status | None = None

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stop_spinner()

    def step(self, sentence: str) -> None:
        self._line(Text.assemble(("✓ ", "green"), sentence))

    def checking(self, check: Check) -> None:
        if not self._console.is_terminal:
            return
        if self._spinner is None:
            self._spinner = self._console.status("", spinner="dots" if self._unicode else "line")
            self._spinner.start()
        self._spinner.update(f"checking: {check.name}")

    def show(self, stage: S, results: list[Result], *, stays: bool) -> None:
        self._stop_spinner()
        for wanted, got in stage.moved.items():
            self._line(Text(f"! port {wanted} is taken, so it is {got} this time", "yellow"))
        self._console.print()
        self._picture(stage)
        self._console.print(self._table(results))
        failed = [result.name for result in results if not result.passed]
        if failed:
            names = ", ".join(failed)
            self._line(Text(f"{len(failed)} of {len(results)} checks failed: {names}", "bold red"))
        else:
            self._line(Text(f"All {len(results)} checks passed.", "bold green"))
        self._next(stage, stays=stays)

    def stopping(self) -> None:
        self._stop_spinner()
        self._console.print("\nStopped.")  # on a line of its own, below the terminal's ^C

    def _picture(self, stage: S) -> None:
        """What runs, in one line."""
        raise NotImplementedError

    def _next(self, stage: S, *, stays: bool) -> None:
        """What to look at and to type now."""
        raise NotImplementedError

    def _table(self, results: list[Result]) -> Table:
        # Narrow gaps and no lines between the columns, so that it fits into a width of 80.
        table = Table(
            box=box.SIMPLE_HEAD,
            header_style="bold",
            border_style="dim",
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("Check", no_wrap=True)
        table.add_column("Through the proxy", style="cyan", overflow="fold")
        table.add_column("Result", overflow="fold")
        table.add_column("Time", justify="right", no_wrap=True)
        for result in results:
            sign, style = ("✓", "green") if result.passed else ("✗", "bold red")
            table.add_row(
                self._text(Text.assemble((f"{sign} ", style), result.name)),
                result.through,
                Text(result.seen, "" if result.passed else style),
                f"{result.seconds * 1000:.0f} ms",
            )
        return table

    def _heading(self, words: str) -> None:
        self._console.print()
        self._line(Text(words, "bold"))

    def _command(self, command: str, purpose: str) -> None:
        self._line(Text(f"  # {purpose}", "dim"))
        self._line(Text(f"  {command}", "cyan"))

    def _line(self, text: Text) -> None:
        """One line, never broken: a wrapped command cannot be pasted."""
        self._console.print(self._text(text), soft_wrap=True)

    def _text(self, text: Text) -> Text:
        """The same in ASCII, for terminals without UTF-8."""
        if self._unicode:
            return text
        for sign, plain in _ASCII.items():
            text = Text(plain).join(text.split(sign, allow_blank=True))
        return text

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


class TextReport(StageReport[Stage]):
    """The report about a proxy and one agent."""

    def _picture(self, stage: Stage) -> None:
        """The path; the tunnel's arrow points in the direction in which it was dialled."""
        self._line(
            Text.assemble(
                "  you ──► ",
                (f"proxy :{stage.http.port}", "bold cyan"),
                " ◄═══ tunnel ═══ ",
                (f'agent "{DEVICE}"', "bold magenta"),
                " ──► ",
                (f"page :{stage.page.port}", "bold green"),
            )
        )

    def _next(self, stage: Stage, *, stays: bool) -> None:
        if stays:
            self._try(stage)
        self._real_thing()
        if stays:
            self._console.print()
            self._line(Text(f"Running at {stage.url} until Ctrl-C.", "bold"))

    def _try(self, stage: Stage) -> None:
        port, tcp = stage.http.port, stage.tcp.port
        name = f"{DEVICE}.localhost"
        self._heading("Open")
        self._line(Text.assemble("  ", (stage.url, f"bold underline link {stage.url}")))
        self._heading("Try, in another terminal")
        self._command(f"curl {stage.url}", "by name")
        self._command(
            f"curl -H 'Tunnelmux-Device: {DEVICE}' http://127.0.0.1:{port}/request",
            "by header: no DNS",
        )
        self._command(
            f"curl --resolve {name}:{port}:127.0.0.1 {stage.url}",
            "where .localhost does not resolve",
        )
        self._command(f"curl -N {stage.url}ticks", "live events")
        self._command(f"echo hello | nc -N 127.0.0.1 {tcp}", "a TCP port")

    def _real_thing(self) -> None:
        self._heading("The real thing")
        self._command(
            "tunnelmux-proxy --quickstart", "where devices reach it; prints a line for each device"
        )
        self._command(
            "tunnelmux-agent --join … --name dev1 --service ssh=tcp://127.0.0.1:22",
            "on the device: that line, with what it offers",
        )


_ASCII = {
    "──►": "-->",
    "◄═══": "<===",
    "═══": "===",
    "→": "->",
    "✓": "+",
    "✗": "x",
    "…": "...",
}
