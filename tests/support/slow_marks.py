"""`make marks`: whether the slow mark is true of every test that does not have it.

One run says little: whatever ran at the same time made tests slower. So a test that took too long
runs alone after that, and is named only when it takes too long each time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["main", "took_too_long"]

MOST_SECONDS = 1.0
"""What a test may take without the mark; what has to be built first does not count."""

AGAIN = 3
"""How often one that took longer is tried alone."""

REPORT = Path("build/marks.xml")


def took_too_long(report: str) -> list[str]:
    """The tests that took too long, from a report of pytest's with `junit_duration_report=call`:
    as pytest wants them named."""
    return [
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in ElementTree.fromstring(report).iter("testcase")
        if float(case.get("time", 0)) > MOST_SECONDS
    ]


def run(arguments: Sequence[str]) -> list[str]:
    """Run these tests; those that took too long. Ends this program where tests fail."""
    options = ["-o", "junit_duration_report=call", f"--junitxml={REPORT}", "-q", "--no-header"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *arguments], check=False)
    if done.returncode != 0:
        sys.exit(f"the tests themselves failed: {done.returncode}")
    return took_too_long(REPORT.read_text("utf-8"))


def main(arguments: Sequence[str]) -> int:
    """1 where a test without the mark takes too long, else 0."""
    slow = run(["-m", "not slow and not long", *arguments])
    for _ in range(AGAIN):
        slow = [name for name in slow if run(["-n", "0", name])]
    for name in slow:
        print(f"without the slow mark, and over {MOST_SECONDS:g} s each time: {name}")  # noqa: T201
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
