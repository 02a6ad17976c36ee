"""Commands for a long time, while everything they depend on is restarted in turn.

    make soak MINUTES=30          (ARGS=--help says more)

Twenty commands a second go through POST /internal/exec of a proxy to an agent behind the tunnel
and to one with Socket.IO, and by SSH to a Debian sshd. Each appends its own id to a file. At the
end the file says what ran, and how often; the callers' answers say what they were told:

- a command that was reported as ended well ran once;
- one that was reported as not run at all did not run;
- none ran twice;
- each that was answered is one line of the proxy's audit.

In the first part of the time processes are killed and started anew. In the second only connections
are cut and the SSH server restarted, so that the memory of the daemons can be watched for long.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import trio

from soak.ledger import Ledger, run_load
from soak.report import print_report, read_audit, summarize
from soak.restarts import run_restarts
from soak.stage import Stage, running_stage
from soak.watch import Watch
from support.tree import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="commands per second")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two restarts")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "soak.json", metavar="FILE")
    parser.add_argument("--without-socketio", action="store_true", help="only through the tunnel")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tunnelmux-soak-"))
    try:
        passed = trio.run(soak, options, folder)
    finally:
        if options.keep:
            say(f"logs, audits and the ledger are in {folder}")
        else:
            shutil.rmtree(folder)
    return 0 if passed else 1


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what this program is for


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    seconds = options.minutes * 60
    ledger = Ledger(folder / "ran")
    async with running_stage(folder, with_socketio=not options.without_socketio) as stage:
        watch = Watch(stage)
        names = ", ".join(stage.destinations)
        say(f"{options.rate:g} commands/s for {options.minutes:g} min to {names}")
        with trio.CancelScope() as background:
            async with trio.open_nursery() as nursery:
                started = trio.current_time()
                interval = min(60.0, seconds / 12)
                nursery.start_soon(watch.run, interval)
                nursery.start_soon(show_progress, ledger, stage, started, seconds, interval)
                # The last restart has time to show what it did.
                until = started + seconds
                nursery.start_soon(run_restarts, stage, options.every, started, until - 5)
                await run_load(ledger, stage, options.rate, until)
                watch.look()
                background.cancel()
        processes = watch.summary()
    audit = read_audit(folder)
    result = summarize(ledger, audit, processes, stage, options.minutes, options.rate)
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print_report(result)
    say(f"{options.json} has it all")
    return bool(result["passed"])


async def show_progress(
    ledger: Ledger, stage: Stage, started: float, seconds: float, interval: float
) -> None:
    while True:
        await trio.sleep(interval)
        minutes = (trio.current_time() - started) / 60
        ok = sum(told.ran_well for told in ledger.told.values())
        memory = ", ".join(
            f"{name} {process.resident() / 2**20:.1f} MiB"
            for name, process in stage.processes.items()
        )
        say(
            f"{minutes:5.1f} of {seconds / 60:g} min: {len(ledger.told)} ended, {ok} well, "
            f"{ledger.in_progress} in progress, {len(stage.restarts)} restarts; {memory}",
        )


if __name__ == "__main__":
    sys.exit(main())
