"""`make failures`: run every failure, and write docs/failures.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from bench import machine
from bench.failures.picture import draw
from bench.failures.report import PAGE, PICTURE, Outcome, judge, page
from bench.failures.scenarios import SCENARIOS, Scenario
from bench.failures.stage import stage
from bench.processes import StartFailure
from bench.rounds import scratch_folder

EXAMPLES = """\
examples:
  make failures                     all of them, a quarter of an hour; writes docs/failures.md
  make failures ARGS=node-killed    one of them, which only prints what it found
  make failures ARGS=--list         what there is

It needs root (for namespaces), redis-server, PostgreSQL, libfaketime (faketime) and iproute2.
"""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(
        prog="failures",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these failures")
    parser.add_argument("--list", action="store_true", help="name them, and end")
    parser.add_argument("--logs", type=Path, help="keep what the programs logged in this folder")
    arguments = parser.parse_args()
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:16} {scenario.title}")
        sys.exit()
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no failure {unknown[0]}; there are: {', '.join(known)}")
    chosen = [known[name] for name in arguments.names] or SCENARIOS
    where = machine.describe()
    try:
        outcomes = run_all(chosen, arguments.logs)
    except StartFailure as exc:
        sys.exit(f"failures: {exc}")
    if chosen is SCENARIOS:
        PICTURE.write_text(draw(outcomes, f"{str(where['date'])[:10]}, {where['commit']}"), "utf-8")
        PAGE.write_text(page(outcomes, where), "utf-8")
        print(f"written: {PAGE.name}, {PICTURE.name}")
    sys.exit(any(outcome.wrong for outcome in outcomes))


def run_all(chosen: list[Scenario], logs: Path | None) -> list[Outcome]:
    outcomes = []
    for number, scenario in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {scenario.title}: {scenario.watch:.0f} s", flush=True)
        began = time.monotonic()
        try:
            outcomes.append(trio.run(partial(run_one, scenario, logs)))
        except Exception as exc:  # noqa: BLE001  a quarter of an hour is not to be lost for it
            print(f"    once more, because it did not come off: {exc!r}", flush=True)
            outcomes.append(trio.run(partial(run_one, scenario, logs)))
        print(f"    {outcomes[-1].line()}  ({time.monotonic() - began:.0f} s)", flush=True)
    return outcomes


async def run_one(scenario: Scenario, logs: Path | None) -> Outcome:
    with scratch_folder() as folder:
        try:
            return await watch(scenario, folder)
        finally:
            if logs is not None:
                shutil.copytree(folder, logs / scenario.name, dirs_exist_ok=True)


async def watch(scenario: Scenario, folder: Path) -> Outcome:
    async with stage(
        folder, nodes=scenario.nodes, workers=scenario.workers, needs=scenario.needs
    ) as this:
        began, at = trio.current_time(), datetime.now(UTC)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scenario.act, this)
            await trio.sleep(scenario.watch)
        noticed = this.noticed(scenario.notices, at)
        requests = [
            request for request in this.crowd.requests if request.ended <= began + scenario.watch
        ]
        return judge(scenario, requests, began, noticed=noticed, notes=this.notes)


if __name__ == "__main__":
    main()
