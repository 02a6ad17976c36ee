"""The demo as one running thing: start, check, show, and stay until told to end."""

from __future__ import annotations

from functools import partial

import trio

from tunnelmux.cli.demo.checks import Result, checks_of, run_check
from tunnelmux.cli.demo.origin import serve_page
from tunnelmux.cli.demo.report import Report
from tunnelmux.cli.demo.stage import PREFERRED, Ports, Serve, running_stage

__all__ = ["Demo"]


class Demo:
    """What `run_until_signalled` runs. `results` is None until every check was made."""

    def __init__(
        self,
        report: Report,
        *,
        once: bool,
        serve_page: Serve = serve_page,
        preferred: Ports = PREFERRED,
    ) -> None:
        self.results: list[Result] | None = None
        self._report = report
        self._once = once
        self._running = partial(
            running_stage, report.step, serve_page=serve_page, preferred=preferred
        )

    async def run(self, *, task_status: trio.TaskStatus[Demo] = trio.TASK_STATUS_IGNORED) -> None:
        """Show everything; with `once` return then, else only when cancelled."""
        with self._report:
            task_status.started(self)
            async with self._running() as stage:
                results = []
                for check in checks_of(stage):
                    self._report.checking(check)
                    results.append(await run_check(check))
                self.results = results
                self._report.show(stage, results, stays=not self._once)
                if not self._once:
                    await trio.sleep_forever()  # until Ctrl-C

    async def drain(self, grace: float) -> None:  # noqa: ARG002  nothing here is waited for
        """End at once: there is no work in a demo that anybody would miss."""
        self._report.stopping()
        await trio.lowlevel.checkpoint()
