"""Check passwords of visitors in threads, and limit wrong guesses."""

from __future__ import annotations

from collections import OrderedDict

import trio

from tunnelmux.access.passwords import DECOY, is_password
from tunnelmux.config.networks import network_of
from tunnelmux.limits import AccessLimits

__all__ = ["PasswordCheck", "TooManyGuesses"]

_PERIOD = 60.0
# Seconds for which wrong passwords of one address, of IPv6 one /64, are counted.


class TooManyGuesses(Exception):
    """This address has sent too many wrong passwords; `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many wrong passwords; {retry_after} s to wait")
        self.retry_after = retry_after


class PasswordCheck:
    """Checks passwords of all rules."""

    def __init__(self) -> None:
        self._limits = AccessLimits()
        self._turns = trio.CapacityLimiter(self._limits.access_max_checks)
        self._waiting = 0
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def configure(self, limits: AccessLimits) -> None:
        """Use these limits from now on."""
        self._limits = limits
        self._turns.total_tokens = limits.access_max_checks

    async def check(self, users: dict[str, str], name: str, password: bytes, source: str) -> bool:
        """Whether this is the user's password; as slow for an unknown name.

        Raises TooManyGuesses.
        """
        network = network_of(source)
        since, count = self._wrong.get(network, (trio.current_time(), 0))
        if trio.current_time() - since >= _PERIOD:
            since, count = trio.current_time(), 0
        if count >= self._limits.access_max_guesses:
            raise TooManyGuesses(max(1, round(since + _PERIOD - trio.current_time())))
        if self._waiting >= self._limits.access_max_waiting_checks + self._limits.access_max_checks:
            raise TooManyGuesses(2)
        # Counted as wrong before the check: many at once from one address must not all be checked.
        self._note(network, since, count + 1)
        self._waiting += 1
        try:
            kept = users.get(name, DECOY)
            right = await trio.to_thread.run_sync(is_password, password, kept, limiter=self._turns)
        finally:
            self._waiting -= 1
        right = right and name in users
        if right:
            self._wrong.pop(network, None)
        return right

    def _note(self, network: str, since: float, count: int) -> None:
        self._wrong[network] = since, count
        self._wrong.move_to_end(network)
        while len(self._wrong) > self._limits.access_max_guessers:
            self._wrong.popitem(last=False)
