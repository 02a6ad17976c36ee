"""Runs the demo: start, check, show, and stay until it is ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

import trio

from tunnelmux.cli.demo.checks import Check, Result, checks_of, run_check
from tunnelmux.cli.demo.origin import serve_page
from tunnelmux.cli.demo.report import Report, Shown
from tunnelmux.cli.demo.stage import PREFERRED, Ports, Serve, Stage, running_stage

__all__ = ["Demo", "Play", "tunnel_demo"]

S = TypeVar("S", bound=Shown)

Play = Callable[[Callable[[str], None]], AbstractAsyncContextManager[tuple[S, Sequence[Check]]]]
"""Starts everything, reports each step, and returns what runs and the checks to make."""


class Demo(Generic[S]):
    """What `run_until_signalled` runs. `results` is None until every check was made."""

    def __init__(self, report: Report[S], play: Play[S], *, once: bool) -> None:
        self.results: list[Result] | None = None
        self._report = report
        self._play = play
        self._once = once

    async def run(
        self, *, task_status: trio.TaskStatus[Demo[S]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Show everything; with `once` return then, else only when cancelled."""
        with self._report:
            task_status.started(self)
            async with self._play(self._report.step) as (stage, checks):
                results = []
                for check in checks:
                    self._report.checking(check)
                    results.append(await run_check(check))
                self.results = results
                self._report.show(stage, results, stays=not self._once)
                if not self._once:
                    await trio.sleep_forever()  # until Ctrl-C

    async def drain(self, grace: float) -> None:  # noqa: ARG002  nothing here is waited for
        """End at once: a demo has no work that must be finished."""
        self._report.stopping()
        await trio.lowlevel.checkpoint()


def tunnel_demo(
    report: Report[Stage],
    *,
    once: bool,
    serve_page: Serve = serve_page,
    preferred: Ports = PREFERRED,
) -> Demo[Stage]:
    """A proxy, an agent and a live page."""
    return Demo(report, partial(_tunnel, serve_page, preferred), once=once)


@asynccontextmanager
async def _tunnel(
    serve_page: Serve, preferred: Ports, say: Callable[[str], None]
) -> AsyncIterator[tuple[Stage, Sequence[Check]]]:
    async with running_stage(say, serve_page=serve_page, preferred=preferred) as stage:
        yield stage, checks_of(stage)
