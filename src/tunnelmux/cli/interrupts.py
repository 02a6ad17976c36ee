"""How a command that waits for something ends at Ctrl-C."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

__all__ = ["run_interruptible"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def run_interruptible(function: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
    """Run `function` in Trio, and return its result. Raises KeyboardInterrupt after SIGINT.

    SIGINT cancels at the next checkpoint and nowhere else. Python would raise it between any two
    steps of a task, at the start of an `__aexit__` for instance, which then closes nothing: the
    nursery in there stays open, and the command never ends.
    """
    import trio  # takes a moment, which --help does not need

    try:
        return trio.run(function, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)
    except BaseExceptionGroup as group:
        # Nurseries wrap it together with errors that came while everything was cancelled.
        interrupts = group.subgroup(KeyboardInterrupt)
        if interrupts is None:
            raise
        raise KeyboardInterrupt from group
