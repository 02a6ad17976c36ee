"""structlog without what its own imports drag in.

`import structlog` imports rich, where that is installed, for tracebacks in colours, and asyncio for
methods that log from coroutines. Neither is used here, and together they take 6 MiB and a third of
the time in which an agent starts. They are hidden for the length of that one import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["hidden_extras"]


class _Deferred(ModuleType):
    """Stands for a module until something in it is used."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def hidden_extras() -> Iterator[None]:
    """For the length of the block, which imports structlog, its extras are not there."""
    # None makes an import fail, which structlog is prepared for.
    stand_ins = {"asyncio": _Deferred("asyncio"), "greenlet": None, "rich": None}
    hidden = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    if "structlog" in sys.modules:
        hidden = {}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is meant
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
