"""Log-ins with an unknown SSH key: the person confirms in a browser who they are.

This uses the codes of `tunnelmux login` (RFC 8628). The token that the browser approves tells who
it is, and is revoked at once. The key is registered at the next log-in that is signed with it:
until then nothing proves that the person has it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import trio

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.gateway.authority import Person
from tunnelmux.observability import get_logger
from tunnelmux.registry import Actor, Registry

__all__ = ["Asked", "Confirmations"]

_log = get_logger("gateway")

_POLL = 1.0
# Seconds between two checks whether the person has confirmed.

_KEPT = 600.0
# Seconds for which a confirmed key can be registered by using it.

_MOST_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """A code that is shown to the person, and the secret to poll with."""

    code: str
    secret: Secret


class Confirmations:
    """Asks people to confirm, and remembers their keys until they are used."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._keys: OrderedDict[str, tuple[Person, float]] = OrderedDict()

    async def ask(self, fingerprint: str, address: str) -> Asked:
        """A new code. Raises RegistryRefused `too_many_requests`, RegistryError."""
        client = f"ssh with the key {fingerprint}"[:100]
        _, code, secret = await self._registry.terminals.ask(client=client, address=address)
        return Asked(code.reveal(), secret)

    async def wait(self, asked: Asked, fingerprint: str, address: str) -> Person | None:
        """The person who has confirmed; None if the code was not confirmed in time. Raises
        RegistryError.

        No deadline of its own: the code has one, and the log-in that waits.
        """
        while True:
            try:
                request = await self._registry.terminals.poll(asked.secret)
            except RegistryRefused:
                return None
            if request.state == "approved":
                return await self._confirmed(asked, fingerprint, address)
            await trio.sleep(_POLL)

    async def _confirmed(self, asked: Asked, fingerprint: str, address: str) -> Person | None:
        proven = await self._registry.prove_token(asked.secret, address=address)
        if proven is None:
            return None
        program = Actor.program("tunnelmux-gateway")
        await self._registry.tenant(proven.tenant_id, program).access_tokens.revoke(proven.token.id)
        user = await self._registry.installation(program).users.find(proven.token.user_id)
        person = Person(user.id, user.email or user.name or user.id)
        self._keys[fingerprint] = (person, trio.current_time() + _KEPT)
        if len(self._keys) > _MOST_KEPT:
            self._keys.popitem(last=False)
        return person

    def owner(self, fingerprint: str) -> Person | None:
        """The person who has confirmed this key and not used it yet; None where there is none."""
        found = self._keys.get(fingerprint)
        if found is None or found[1] < trio.current_time():
            self._keys.pop(fingerprint, None)
            return None
        return found[0]

    async def register(self, fingerprint: str, line: str) -> str:
        """Register a key that has signed a log-in for the person who confirmed it. Returns its id;
        nothing where it cannot be registered. Raises RegistryError."""
        person = self.owner(fingerprint)
        if person is None:
            return ""
        del self._keys[fingerprint]
        actor = Actor(kind="user", id=person.user_id, name=person.name)
        keys = self._registry.installation(actor).ssh_keys
        try:
            added = await keys.add(person.user_id, line, "confirmed in a browser")
        except (RegistryRefused, NoSuchRecord) as exc:
            _log.warning("key not registered", person=person.name, problem=str(exc))
            return ""
        _log.info("key registered", person=person.name, key=fingerprint)
        return added.id
