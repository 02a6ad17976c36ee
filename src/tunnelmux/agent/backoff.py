"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["HELD_LONG_ENOUGH", "Backoff"]

HELD_LONG_ENOUGH = 10.0
"""Seconds after which a session counts as a success and the next loss starts from the minimum.
Below it, a proxy that takes connections and drops them at once would be dialled twice a second."""


class Backoff:
    """Exponential back-off with full jitter, between `minimum` and `maximum` seconds.

    Full jitter (a delay anywhere from nothing to the bound) spreads a fleet that lost its proxy in
    one instant evenly over the time the proxy needs to come back. `uniform(a, b)` is the dice.
    """

    def __init__(
        self,
        minimum: float,
        maximum: float,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._uniform = uniform
        self._bound = minimum

    def next_delay(self, hint: float | None = None) -> float:
        """Seconds to wait after one more failure.

        `hint` is the other side's own wish (Retry-After) and wins over the maximum too; a jitter of
        at most the minimum goes on top, so that a whole fleet does not return in the same instant.
        """
        bound, self._bound = self._bound, min(self._bound * 2, self._maximum)
        if hint is not None:
            return hint + self._uniform(0.0, self._minimum)
        return self._uniform(0.0, bound)

    def held(self, duration: float) -> None:
        """A session lasted `duration` seconds; after a long one, start again from the minimum."""
        if duration >= HELD_LONG_ENOUGH:
            self._bound = self._minimum
