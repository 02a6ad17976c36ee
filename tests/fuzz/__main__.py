"""python tests/fuzz SECONDS [TARGET ...]: fuzz the targets, one after another, that long in all.

What the fuzzer finds worth keeping goes to build/fuzz/corpus; an input that fails goes to
build/fuzz/failures, and the exit status is 1. `make fuzz` calls this with the right modules.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGETS = sorted(folder.name for folder in (HERE / "corpus").iterdir())
LONGEST_INPUT = 1_500
SLOWEST_INPUT = 25
"""Bytes and seconds; an input of a target that takes longer has found an endless loop."""


def main() -> int:
    seconds, *targets = sys.argv[1:]
    share = max(int(seconds) // len(targets or TARGETS), 1)
    failed = [target for target in targets or TARGETS if not fuzz(target, share)]
    for target in failed:
        say(f"{target} failed; build/fuzz/{target}.log has the traceback and the input")
    return 1 if failed else 0


def say(text: str) -> None:
    print(f"fuzz: {text}", flush=True)  # noqa: T201 - what this program is for


def fuzz(target: str, seconds: int) -> bool:
    """Fuzz one target and print what it came to; whether nothing was found."""
    work, failures = ROOT / "build/fuzz/corpus" / target, ROOT / "build/fuzz/failures"
    for folder in (work, failures):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(HERE / "one.py"),
        target,
        str(work),
        str(HERE / "corpus" / target),
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-timeout={SLOWEST_INPUT}",
        "-print_final_stats=1",
        f"-artifact_prefix={failures}/{target}-",
    ]
    log = ROOT / f"build/fuzz/{target}.log"
    with log.open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = log.read_text("utf-8", "replace")
    runs = re.findall(r"number_of_executed_units: (\d+)", text)
    rate = re.findall(r"average_exec_per_sec: +(\d+)", text)
    seen = re.findall(r"cov: (\d+)", text)
    figures = f"{(runs or ['0'])[-1]:>9} runs, {(rate or ['0'])[-1]:>6}/s, {(seen or ['0'])[-1]:>5}"
    say(f"{target:18}{figures} branches, {'ok' if done.returncode == 0 else 'FAILED'}")
    return done.returncode == 0


sys.exit(main())
