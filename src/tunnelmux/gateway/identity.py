"""How a person proves who they are: by a registered SSH key, or by a ticket.

asyncssh asks `validate_public_key` before a signature was checked as well as after, in the same
words. Who it is counts only once the signature is good, so the one place that sees key and
signature together is wrapped (`Proof.check`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable

from tunnelmux.errors import NoSuchRecord, RegistryError
from tunnelmux.gateway.authority import Authority, Person
from tunnelmux.gateway.guest import Bridge
from tunnelmux.gateway.names import Login
from tunnelmux.observability import get_logger

__all__ = ["Proof", "fingerprint_of"]

_log = get_logger("gateway")

Check = Callable[[str, bytes, bytes, bytes], Awaitable[bool]]


def fingerprint_of(blob: bytes) -> str:
    """As `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return "SHA256:" + digest.rstrip("=")


class Proof:
    """What one connection has shown of who is behind it."""

    def __init__(
        self,
        bridge: Bridge,
        authority: Authority,
        check: Check,
        address: str,
        max_tries: int,
    ) -> None:
        """`check` is asyncssh's own, of one connection."""
        self.login: Login | None = None
        """What the user name asks for; None where it is nothing."""
        self.person: Person | None = None
        """Who it is, once that is proved."""
        self.tries = 0
        self.unknown = ""
        """The fingerprint of a key that was shown and is not known here."""
        self.is_away = False
        """Whether the registry could not be asked."""
        self._bridge = bridge
        self._authority = authority
        self._check = check
        self._address = address
        self._max_tries = max_tries
        self._known: dict[str, Person | None] = {}

    @property
    def is_spent(self) -> bool:
        """Whether the connection has shown as much as it may."""
        return self.tries > self._max_tries

    def begin(self, login: Login | None) -> None:
        """A user name was said; nothing that was proved for another one counts."""
        self.login = login
        self.person = None

    async def check(self, user: str, key: bytes, message: bytes, signature: bytes) -> bool:
        """In place of asyncssh's own, which it calls: remembers who has signed."""
        self.tries += 1
        if self.is_spent or self.login is None or self.login.ticket is not None:
            return False
        person = await self._person_of(fingerprint_of(key))
        if person is None or not await self._check(user, key, message, signature):
            return False
        if message:
            self.person = person
        return True

    async def redeem(self) -> bool:
        """Whether the ticket in the user name lets them in; it is used up by asking."""
        self.tries += 1
        if self.is_spent or self.login is None or self.login.ticket is None:
            return False
        try:
            self.person = await self._bridge.in_trio(
                self._authority.person_of_ticket, self.login.ticket, self._address
            )
        except (RegistryError, NoSuchRecord) as exc:
            self._tell_away(exc)
        return self.person is not None

    async def _person_of(self, fingerprint: str) -> Person | None:
        if fingerprint not in self._known:
            try:
                person = await self._bridge.in_trio(self._authority.person_of_key, fingerprint)
            except NoSuchRecord:
                person = None
            except RegistryError as exc:
                self._tell_away(exc)
                return None
            self._known[fingerprint] = person
        if self._known[fingerprint] is None:
            self.unknown = fingerprint
        return self._known[fingerprint]

    def _tell_away(self, exc: Exception) -> None:
        self.is_away = True
        _log.warning("nobody can log in", address=self._address, problem=str(exc))
