"""Makes trio-asyncio 0.16 work on CPython 3.14 and later.

It cannot be imported there, and its tasks would not run, for three reasons:

- 3.14 gave asyncio's policy base class an underscore and removed the child watchers, both of which
  trio-asyncio subclasses at import.
- 3.14's compiled `Task.__step` insists that the running loop, as the C code knows it, is the task's
  own. trio-asyncio sets the running loop in Python, where the C code does not look. So the C code
  must be told around each callback.
- 3.15's transports pass `context=` to the private `_add_reader` and `_add_writer`.

Nothing here runs on 3.13 and earlier, and nothing changes for loops other than trio-asyncio's.
Remove this module when a release of trio-asyncio can be imported without it.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import contextvars
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["repair_asyncio", "repair_trio_asyncio"]

_FOREIGN = "trio_asyncio"
_PYTHON: tuple[int, ...] = tuple(sys.version_info[:2])


def repair_asyncio() -> None:
    """Call this before trio_asyncio is imported. It may be called again."""
    if _PYTHON < (3, 14):
        return
    events: Any = asyncio.events
    if not hasattr(events, "BaseDefaultEventLoopPolicy"):
        events.BaseDefaultEventLoopPolicy = events._BaseDefaultEventLoopPolicy  # noqa: SLF001
    module: Any = asyncio
    if not hasattr(module, "AbstractChildWatcher"):
        module.AbstractChildWatcher = type("AbstractChildWatcher", (), {})
    _announce_running_loop()


def _announce_running_loop() -> None:
    compiled: Any = __import__("_asyncio")
    handle: Any = asyncio.Handle
    plain = handle._run  # noqa: SLF001
    if getattr(plain, "announces_loop", False):
        return

    def run(self: Any) -> Any:
        loop = self._loop
        if not type(loop).__module__.startswith(_FOREIGN):
            return plain(self)
        before = compiled._get_running_loop()  # noqa: SLF001
        compiled._set_running_loop(loop)  # noqa: SLF001
        try:
            return plain(self)
        finally:
            compiled._set_running_loop(before)  # noqa: SLF001

    run.announces_loop = True  # type: ignore[attr-defined]
    handle._run = run  # noqa: SLF001


def repair_trio_asyncio(loop_class: Any) -> None:
    """Call this with trio-asyncio's base loop class, after the import. It may be called again."""
    if _PYTHON < (3, 15):
        return
    for name in ("_add_reader", "_add_writer"):
        method = getattr(loop_class, name)
        if not getattr(method, "takes_context", False):
            setattr(loop_class, name, _with_context(method))


def _with_context(method: Callable[..., Any]) -> Callable[..., Any]:
    def add(
        self: Any,
        descriptor: Any,
        callback: Callable[..., object],
        *args: object,
        context: contextvars.Context | None = None,
    ) -> Any:
        if context is None:
            return method(self, descriptor, callback, *args)
        return method(self, descriptor, context.run, callback, *args)

    add.takes_context = True  # type: ignore[attr-defined]
    return add
