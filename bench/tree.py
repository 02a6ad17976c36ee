"""Where things lie in a clone."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
IMAGES = ROOT / "docs" / "images"
BUILDS = ROOT / "build" / "peers-bench"
"""Peers' programs, built once; `make clean` removes them."""
