"""Run the micro-benchmarks: `python bench` runs all, `python bench frame` that one.

Each module here has a `run()` that yields (what, figure, unit). They measure one process on this
machine, now: compare a change with its parent on a quiet machine, and nothing else.
"""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path


def main() -> int:
    """Run the modules named on the command line, or all of them; 2 for an unknown name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    wanted = sys.argv[1:] or names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(names)}")
        return 2
    print(f"CPython {platform.python_version()}, {platform.machine()}, {platform.system()}")
    for name in wanted:
        for what, figure, unit in importlib.import_module(name).run():
            print(f"{name:8} {what:44} {figure:12,.1f} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
