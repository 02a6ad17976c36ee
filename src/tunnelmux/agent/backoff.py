"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from collections.abc import Callable

from tunnelmux.config import BackoffConfig

__all__ = ["EARLY_TRIES", "HELD_LONG_ENOUGH", "Backoff", "ReplacedBackoff", "new_backoff"]

HELD_LONG_ENOUGH = 10.0
"""Seconds after which a session counts as a success and the next loss starts from the minimum.
Below it, a proxy that takes connections and drops them at once would be dialled twice a second; one
that could not be reached before it is merely being restarted again, and that counts as well."""

EARLY_TRIES = 10
"""Waits after a loss that stay short. They cover some nine seconds, half of a second more or less:
a proxy that is restarted is back by then, and one dial a second is no burden to one that is not."""

_REPLACED_FACTOR = 10
"""How many times the first wait the longest is, for an agent that is replaced again and again."""


class Backoff:
    """Exponential back-off with full jitter, between `minimum` and `maximum` seconds.

    The bound doubles from `minimum`, stays at `early` for the rest of the first EARLY_TRIES waits,
    and then doubles up to `maximum`. So a device is back within `early` seconds of a proxy that was
    restarted, and a proxy that is away for longer is asked ever more rarely. Full jitter (a delay
    anywhere from nothing to the bound) spreads a fleet that lost its proxy in one instant evenly.
    `uniform(a, b)` is the dice.
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
        self._was_away = False  # since the last session
        self._has_ended = False  # a session, and nothing was waited for since

    def next_delay(self, hint: float | None = None, *, is_ours: bool = True) -> float:
        """Seconds to wait after one more failure.

        `hint` is the other side's own wish (Retry-After). A proxy's wins over the maximum too; that
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
        """A session lasted `duration` seconds. After a long one, and after any that was made when
        attempts had failed before, start again from the minimum."""
        if duration >= HELD_LONG_ENOUGH or self._was_away:
            self._bound = self._minimum
            self._tries = 0
        self._has_ended = True


class ReplacedBackoff:
    """How long an agent keeps away when another one, with its credential, has taken its place.

    Both may be at it: so the wait is long, and doubles from one time to the next, unless a session
    lasted for a while in between. `uniform(a, b)` is the dice.
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
    """What `[backoff]` says, with this dice."""
    return Backoff(config.minimum, config.maximum, config.early, uniform=uniform)
