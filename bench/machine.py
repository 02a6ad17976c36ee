"""What a result must say about where and when it was taken."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from bench.tree import ROOT


def describe() -> dict[str, object]:
    """Date, commit, kernel, processor, load average at this moment."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text("utf-8")),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def commit() -> str:
    """The commit's short name; with `-dirty` when what is measured differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.machine()
