"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from collections.abc import Callable

from tunnelmux.config import BackoffConfig

__all__ = ["EARLY_TRIES", "HELD_LONG_ENOUGH", "Backoff", "ReplacedBackoff", "new_backoff"]

HELD_LONG_ENOUGH = 10.0
"""Seconds after which a session counts as a success and the next loss starts from the minimum.
Without this, a proxy that accepts connections and drops them at once would be dialled twice a
second. A session after failed attempts counts too: such a proxy is merely being restarted.
"""

EARLY_TRIES = 10
"""Waits after a loss that stay short. They cover about nine seconds: a restarted proxy is back by
then, and one dial per second is no burden otherwise.
"""

_REPLACED_FACTOR = 10
"""The longest wait of an agent that is replaced again and again, as a multiple of the first."""


class Backoff:
    """Exponential back-off with full jitter, between `minimum` and `maximum` seconds.

    The bound doubles from `minimum`, stays at `early` for the rest of the first EARLY_TRIES waits,
    and then doubles up to `maximum`. So a device is back within `early` seconds of a proxy that was
    restarted, and a proxy that is away for longer is asked ever more rarely. Full jitter (a delay
    anywhere from nothing to the bound) spreads a fleet that lost its proxy in one instant evenly.
    `uniform(a, b)` gives random numbers.
    """

    def __init__(
        self,
        minimum: float,
        maximum: float,
        early: float = 2.0,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._early = min(max(early, minimum), maximum)
        self._uniform = uniform
        self._bound = minimum
        self._tries = 0
        self._was_away = False  # failures since the last session
        self._has_ended = False  # there was a session, and no wait since

    def next_delay(self, hint: float | None = None, *, is_ours: bool = True) -> float:
        """Seconds to wait after one more failure.

        `hint` is the server's Retry-After. A proxy's overrides even the maximum; that
        of what is not ours, say the login page of a network, counts only where the wait can be as
        long without it. A jitter of at most the minimum goes on top, so that a whole fleet does
        not return in the same instant.
        """
        self._was_away = not self._has_ended
        self._has_ended = False
        bound = self._bound
        self._tries += 1
        limit = self._early if self._tries < EARLY_TRIES else self._maximum
        self._bound = min(bound * 2, limit)
        if hint is not None and (is_ours or hint <= bound):
            return hint + self._uniform(0.0, self._minimum)
        return self._uniform(0.0, bound)

    def held(self, duration: float) -> None:
        """Record a session of `duration` seconds. After a long one, or one that followed failed
        attempts, waits start again from the minimum.
        """
        if duration >= HELD_LONG_ENOUGH or self._was_away:
            self.start_again()
        self._has_ended = True

    def start_again(self) -> None:
        """Wait as after a first failure: there is news that an attempt may succeed now."""
        self._bound = self._minimum
        self._tries = 0


class ReplacedBackoff:
    """Waits of an agent that another one with its credential has replaced. Both may do this in
    turn, so the wait is long and doubles each time, unless a session lasted for a while in between.
    `uniform(a, b)` gives random numbers.
    """

    def __init__(self, first: float, *, uniform: Callable[[float, float], float]) -> None:
        self._first = self._bound = first
        self._uniform = uniform

    def next_delay(self, held: float) -> float:
        """Seconds to wait, after a session of `held` seconds."""
        if held > _REPLACED_FACTOR * self._first * 2:
            self._bound = self._first
        bound = self._bound
        self._bound = min(bound * 2, self._first * _REPLACED_FACTOR)
        return self._uniform(bound / 2, bound)


def new_backoff(config: BackoffConfig, uniform: Callable[[float, float], float]) -> Backoff:
    """The Backoff of `[backoff]`, with this source of random numbers."""
    return Backoff(config.minimum, config.maximum, config.early, uniform=uniform)
