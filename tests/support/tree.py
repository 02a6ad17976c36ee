"""The project's own files, for the tests that hold its architecture and house rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "SOURCE", "project_files"]

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tunnelmux"

FOLDERS = ("src", "tests", "cmd", "bench", "docs", ".ci")
MADE_BY_TOOLS = {".c", ".html", ".pyc", ".so"}


def project_files() -> Iterator[Path]:
    """Every text file people wrote: those at the top, and all in the project's folders."""
    top = (path for path in ROOT.iterdir() if path.is_file())
    yield from sorted(path for path in top if path.name != ".git")  # a file in a linked worktree
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            generated = path.suffix in MADE_BY_TOOLS or any(
                part.startswith("__pycache__") or part.endswith(("_cache", ".egg-info"))
                for part in path.parts
            )
            if path.is_file() and not generated:
                yield path
