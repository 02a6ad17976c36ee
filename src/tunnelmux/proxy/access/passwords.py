"""Check passwords of visitors in threads, and limit wrong guesses."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, OrderedDict

import trio

from tunnelmux.access.passwords import DECOY, is_password
from tunnelmux.config.networks import network_of, wider_networks
from tunnelmux.limits import AccessLimits, most_of_one_tenant

__all__ = ["PasswordCheck", "TooManyGuesses"]

_PERIOD = 60.0
# Seconds for which wrong passwords of one address, of IPv6 one /64, are counted, and those of the
# blocks around it.


_Counts = OrderedDict[str, tuple[float, int]]
# Of each group of addresses when its count began, and the count.


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
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._wrong: _Counts = OrderedDict()
        self._around: _Counts = OrderedDict()  # of the blocks around: no network pushes one out
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._key = secrets.token_bytes(32)

    def configure(self, limits: AccessLimits) -> None:
        """Use these limits from now on."""
        self._limits = limits
        self._turns.total_tokens = limits.access_max_checks

    async def check(
        self, users: dict[str, str], name: str, password: bytes, source: str, tenant: str = ""
    ) -> bool:
        """Whether this is the user's password; as slow for an unknown name. `source` is the
        visitor's address, `tenant` that of the device, empty for the default one.

        Raises TooManyGuesses, but not for a login that was right before: who guesses behind the
        same address, or from many, does not keep that person out.
        """
        kept = users.get(name, DECOY)
        login = self._digest(name, password, kept)
        if login in self._right:
            self._right.move_to_end(login)
            return True
        network = network_of(source)
        counts = self._counts(source)
        held = self._places(network, tenant)
        if any(self._waiting[key] >= most for key, most in held.items()):
            raise TooManyGuesses(2)
        # Counted as wrong before the check: many at once from one address must not all be checked.
        for group, (since, count) in counts.items():
            self._note(self._wrong if group == network else self._around, group, since, count + 1)
        self._waiting.update(held.keys())
        try:
            right = await trio.to_thread.run_sync(is_password, password, kept, limiter=self._turns)
        finally:
            self._waiting.subtract(held.keys())
            self._waiting = +self._waiting  # without those at zero
        right = right and name in users
        if right:
            self._wrong.pop(network, None)
            for group in counts:
                self._take_back(group)
            self._right[login] = None
            if len(self._right) > self._limits.access_max_passes:
                self._right.popitem(last=False)
        return right

    def _counts(self, source: str) -> dict[str, tuple[float, int]]:
        """The groups of addresses that a guess from this one counts against, each with its count so
        far and when that began. Raises TooManyGuesses."""
        counts, now = {}, trio.current_time()
        for group, times in [(network_of(source), 1), *wider_networks(source)]:
            since, count = self._wrong.get(group) or self._around.get(group) or (now, 0)
            if now - since >= _PERIOD:
                since, count = now, 0
            if count >= times * self._limits.access_max_guesses:
                raise TooManyGuesses(max(1, round(since + _PERIOD - now)))
            counts[group] = since, count
        return counts

    def _take_back(self, group: str) -> None:
        """Count the password as right that was counted as wrong before the check."""
        if group in self._around:
            since, count = self._around[group]
            self._around[group] = since, max(0, count - 1)

    def _digest(self, name: str, password: bytes, kept: str) -> bytes:
        """What is remembered of a right login: it changes with the user's password."""
        digest = hashlib.blake2b(key=self._key, digest_size=32)
        for part in (name.encode("utf-8"), password, kept.encode("utf-8")):
            digest.update(b"%d:" % len(part) + part)
        return digest.digest()

    def _places(self, network: str, tenant: str) -> dict[tuple[str, str], int]:
        """What one check counts against, each with its most: all checks, those from one network,
        and those for the devices of one tenant."""
        most = self._limits.access_max_waiting_checks + self._limits.access_max_checks
        held = {("all", ""): most, ("network", network): max(1, most // 4)}
        if tenant:
            held["tenant", tenant] = most_of_one_tenant(most)
        return held

    def _note(self, counts: _Counts, group: str, since: float, count: int) -> None:
        counts[group] = since, count
        counts.move_to_end(group)
        while len(counts) > self._limits.access_max_guessers:
            counts.popitem(last=False)
