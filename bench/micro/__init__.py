"""Micro-benchmarks: one part of tunnelmux in one process, without tunnels or peers.

Each module has a `run()` that yields (what, figure, unit).
"""

from __future__ import annotations

import importlib

from bench.medians import median, spread

PARTS = ("frame", "engine", "masking")
"""What runs when nothing is named."""

SLOW_PARTS = ("link", "registry")
"""Only by name. `link` takes four minutes, root and a TUN device, and measures windows, not speed;
`registry` measures a database."""


def measure(part: str, rounds: int) -> dict[str, dict[str, object]]:
    """The figures of one part by name, from so many runs of it; printed as they are known."""
    module = importlib.import_module(f"bench.micro.{part}")
    samples: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for _ in range(rounds):
        for what, figure, unit in module.run():
            name = f"{part}: {what.strip()}"
            samples.setdefault(name, []).append(figure)
            units[name] = unit
    figures: dict[str, dict[str, object]] = {}
    for name, values in samples.items():
        middle, apart = median(values), spread(values)
        print(f"{name:60} {middle:12,.1f} {units[name]:6} ±{apart:.0%}", flush=True)
        figures[name] = {
            "median": middle,
            "spread": apart,
            "unit": units[name],
            "samples": values,
        }
    return figures
