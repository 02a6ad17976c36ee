"""Cancel an operation at its first checkpoint, its second, its third, until it is through.

A checkpoint is counted where Trio counts it: each time the operation's task gives up control. What
the operation does between two of them cannot be interrupted, so these are all the places there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

__all__ = ["Outcome", "at_every_checkpoint", "cancelled_after"]

MOST_CHECKPOINTS = 500
"""An operation that takes more has no end; what is tested here takes a few dozen."""


class Outcome:
    """What became of one try."""

    def __init__(self, checkpoint: int) -> None:
        self.checkpoint = checkpoint
        """The one at which it was cancelled, counted from 1."""
        self.cancelled = False
        """It ended by the cancellation. False: it was through, or it could not be stopped."""
        self.reached = False
        """It came as far as that checkpoint."""

    def __repr__(self) -> str:
        return f"<cancelled at checkpoint {self.checkpoint}: {self.cancelled}>"


class _Counter(trio.abc.Instrument):
    """Cancels *scope* when *task* gives up control for the n-th time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, outcome: Outcome) -> None:
        self._task = task
        self._scope = scope
        self._outcome = outcome
        self._seen = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._seen += 1
            if self._seen == self._outcome.checkpoint:
                self._outcome.reached = True
                self._scope.cancel()


async def cancelled_after(operation: Callable[[], Awaitable[object]], checkpoint: int) -> Outcome:
    """Run *operation* in this task, cancelled at that checkpoint (from 1) unless it ends before."""
    outcome = Outcome(checkpoint)
    with trio.CancelScope() as scope:
        counter = _Counter(trio.lowlevel.current_task(), scope, outcome)
        trio.lowlevel.add_instrument(counter)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(counter)
    outcome.cancelled = scope.cancelled_caught
    return outcome


async def at_every_checkpoint(attempt: Callable[[int], Awaitable[Outcome]]) -> int:
    """Call *attempt* with 1, 2, 3 … until its operation was through before that checkpoint.

    An attempt sets up what it needs, runs `cancelled_after`, checks what must hold, and gives the
    outcome back. Returns how many attempts were cancelled.
    """
    cancelled = 0
    for checkpoint in range(1, MOST_CHECKPOINTS):
        with trio.fail_after(60):
            outcome = await attempt(checkpoint)
        cancelled += outcome.cancelled
        if not outcome.reached:
            assert not outcome.cancelled
            return cancelled
    raise AssertionError("the operation never ends")
