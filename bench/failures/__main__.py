"""`make failures`: run every failure, and write docs/failures.md."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import NoReturn

import trio

from bench import machine
from bench.failures.report import PAGE, Outcome, judge, write_page
from bench.failures.scenarios import SCENARIOS, Scenario
from bench.failures.stage import stage
from bench.processes import StartFailure
from bench.rounds import scratch_folder

EXAMPLES = """\
examples:
  make failures                             all of them, about ten minutes; writes docs/failures.md
  make failures ARGS=node-killed            one of them, which only prints what it found
  make failures ARGS=--list                 what there is
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
    arguments = parser.parse_args()
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:16} {scenario.title}")
        sys.exit()
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no failure {unknown[0]}; there are: {', '.join(known)}")
    chosen = [known[name] for name in arguments.names] or SCENARIOS
    try:
        outcomes = run_all(chosen)
    except StartFailure as exc:
        sys.exit(f"failures: {exc}")
    if chosen is SCENARIOS:
        write_page(outcomes, machine.describe())
        print(f"written: {PAGE.name}")
    sys.exit(any(outcome.wrong for outcome in outcomes))


def run_all(chosen: list[Scenario]) -> list[Outcome]:
    outcomes = []
    for number, scenario in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {scenario.title}: {scenario.watch:.0f} s", flush=True)
        began = time.monotonic()
        outcomes.append(trio.run(partial(run_one, scenario)))
        print(f"    {outcomes[-1].line()}  ({time.monotonic() - began:.0f} s)", flush=True)
    return outcomes


async def run_one(scenario: Scenario) -> Outcome:
    with scratch_folder() as folder:
        async with stage(folder, nodes=scenario.nodes, workers=scenario.workers) as this:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scenario.act, this)
                await trio.sleep(scenario.watch)
            return judge(scenario, this.crowd.requests, began)


if __name__ == "__main__":
    main()
