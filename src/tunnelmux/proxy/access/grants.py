"""A cache of the grants in use: sessions of people, and links, as the registry has them.

A grant is read when it is first used, again with each change that may concern it, and once a minute
while it is in use. While the registry is away, cached grants are valid until they expire, and
others are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import trio

from tunnelmux.access.signatures import Maker, PublicKeys, Signer
from tunnelmux.errors import RegistryAway, RegistryError
from tunnelmux.limits import AccessLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.access.proofs import Grant
from tunnelmux.registry import GrantState, Lease, Registry

__all__ = ["Grants"]

_log = get_logger("proxy.access")

_REFRESH = 60.0
# Seconds between two reads of all grants in use, which also report their use to the registry.

_RETRY = 2.0
# Seconds until the next try after a failure.

_PART = 500
# Grants per transaction.

_LOOK_UP = 3.0
# Seconds a visitor waits for the registry.

_KEYS_FOR = 2.0
# Seconds after which an unknown key is looked up again: a new program may have published it.


class Grants:
    """The grants in use. `on_change` is called with each grant that has ended or whose rights
    changed; `in_use` returns those that a live visit depends on.
    """

    def __init__(
        self,
        on_change: Callable[[Grant], None],
        in_use: Callable[[], Iterable[Grant]] = tuple,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.limits = AccessLimits()
        self.signer = Signer.new("proxy")
        self.keys = PublicKeys(self._find_key)
        self.sign_in_url = ""
        """The URL where people sign in; empty until a tunnelmux-api has published it."""
        self._on_change = on_change
        self._in_use = in_use
        self._now = now
        self._registry: Registry | None = None
        self._known: dict[tuple[str, str], Grant] = {}
        self._keys: dict[str, tuple[bytes, Maker]] = {}
        self._keys_read = -_KEYS_FOR
        self._timer = trio.CancelScope()
        self._visitors_url = ""
        self._url_changed = trio.Event()

    # -- for the gate -----------------------------------------------------------------------------

    def find(self, kind: str, grant_id: str) -> Grant | None:
        """A cached grant that has not ended; else None."""
        found = self._known.get((kind, grant_id))
        if found is None or not found.is_living or found.ends <= self._now():
            return None
        found.used = True
        return found

    async def look_up(self, kind: str, grant_id: str) -> None:
        """Read an unknown grant from the registry. Raises RegistryError, also where the cache is
        full.
        """
        if self.find(kind, grant_id) is not None:
            return
        registry = self._require()
        with trio.move_on_after(_LOOK_UP) as limit:
            states = await registry.visitors.look_up([(kind, grant_id)])
        if limit.cancelled_caught:
            raise RegistryAway("the registry did not answer in time")
        self._make_room()
        self._take(states)

    @property
    def is_up_to_date(self) -> bool:
        """Whether the registry answered the last call."""
        return self._registry is not None

    def knows_key(self, key_id: str) -> bool:
        """Whether a key of this id is known."""
        return self._find_key(key_id) is not None

    async def redeem_ticket(self, ticket_id: str, until: float) -> bool:
        """Use up this ticket. True if it was unused. Raises RegistryError."""
        return await self._require().visitors.use_ticket(ticket_id, until)

    async def redeem_link(self, link_id: str, device: str, service: str) -> bool:
        """Count a use of this link to this service. True if it was allowed.
        Raises RegistryError."""
        return await self._require().visitors.use_link(link_id, device, service)

    async def use_lease(self, lease: Lease, address: str, details: dict[str, object]) -> None:
        """Count a use of this lease by its holder, from this address. Raises RegistryError."""
        fleet = self._require().fleet
        await fleet.use_lease(lease.id, lease.device_id, address, details)

    async def read_keys(self) -> None:
        """Read the public keys again, unless that was just done. Raises RegistryError."""
        if trio.current_time() - self._keys_read < _KEYS_FOR:
            return
        self._keys_read = trio.current_time()
        await self._read_keys(self._require())

    # -- for the reader of changes ----------------------------------------------------------------

    def say_where(self, url: str) -> None:
        """Publish the URL for visitors, `https://tunnel.example.com`, for programs that
        make links."""
        if url != self._visitors_url:
            self._visitors_url = url
            self._url_changed.set()

    async def greet(self, registry: Registry) -> None:
        """The registry answers: publish our own key, and read those of others."""
        self._registry = registry
        await self._publish(registry)
        await self._read_keys(registry)

    async def _publish(self, registry: Registry) -> None:
        await registry.visitors.publish_key(
            self.signer.key_id, self.signer.public, maker="proxy", url=self._visitors_url
        )

    def note_away(self) -> None:
        """The registry does not answer."""
        self._registry = None

    async def apply(self, registry: Registry, kind: str, object_id: str) -> None:
        """Read the grants again that this change may concern."""
        if kind == "key":
            await self._read_keys(registry)
            return
        concerned = [
            key
            for key, grant in self._known.items()
            if kind == "tenant"
            or (kind == "user" and grant.user_id == object_id)
            or (kind == "browser_session" and key == ("session", object_id))
            or (kind == "link" and key == ("link", object_id))
        ]
        await self._refresh(registry, concerned, used=())

    async def refresh_all(self, registry: Registry) -> None:
        """Read all cached grants again. Raises RegistryError."""
        await self._refresh(registry, list(self._known), used=())

    async def run(self, registry: Registry) -> None:
        """Read all grants once a minute, and end expired ones, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_in_time)
            while True:
                with trio.move_on_after(_REFRESH):
                    await self._url_changed.wait()
                self._url_changed = trio.Event()
                for grant in self._in_use():
                    grant.used = True
                used = [key for key, grant in self._known.items() if grant.used]
                try:
                    await self._publish(registry)
                    await self._refresh(registry, list(self._known), used=used)
                except RegistryError as error:
                    _log.debug("grants not read", cause=str(error))
                    await trio.sleep(_RETRY)

    # -- the copy ---------------------------------------------------------------------------------

    async def _refresh(
        self, registry: Registry, keys: list[tuple[str, str]], used: Iterable[tuple[str, str]]
    ) -> None:
        was_used = set(used)
        for key in was_used:
            if key in self._known:  # it may have ended meanwhile
                self._known[key].used = False
        for first in range(0, len(keys), _PART):
            part = keys[first : first + _PART]
            states = await registry.visitors.look_up(part, used=[k for k in part if k in was_used])
            self._take(states)

    def _take(self, states: list[GrantState]) -> None:
        for state in states:
            key = (state.kind, state.id)
            grant = self._known.get(key)
            if grant is None:
                if not state.is_living:
                    continue
                grant = self._known[key] = Grant(state.kind, state.id)
            before = (grant.is_living, dict(grant.roles))
            grant.is_living = state.is_living
            grant.ends = state.ends
            grant.user_id, grant.name, grant.email = state.user_id, state.name, state.email
            grant.roles = dict(state.roles)
            if not grant.is_living:
                del self._known[key]
            if before != (grant.is_living, dict(grant.roles)):
                grant.version += 1
                self._on_change(grant)
        self._timer.cancel()

    def _make_room(self) -> None:
        most = self.limits.access_max_grants
        if len(self._known) < most:
            return
        here = {id(grant) for grant in self._in_use()}
        self._known = {k: g for k, g in self._known.items() if g.used or id(g) in here}
        if len(self._known) >= most:
            raise RegistryAway(f"{most} people and links are here (limits.access_max_grants)")

    async def _end_in_time(self) -> None:
        while True:
            now = self._now()
            soonest = min((grant.ends for grant in self._known.values()), default=now + _REFRESH)
            with trio.CancelScope() as self._timer:
                await trio.sleep(min(max(soonest - now, 0.0), _REFRESH))
            now = self._now()
            for key, grant in list(self._known.items()):
                if grant.ends <= now:
                    grant.is_living = False
                    del self._known[key]
                    self._on_change(grant)

    def _find_key(self, key_id: str) -> tuple[bytes, Maker] | None:
        if key_id == self.signer.key_id:
            return self.signer.public, "proxy"
        return self._keys.get(key_id)

    async def _read_keys(self, registry: Registry) -> None:
        keys = await registry.visitors.keys()
        self._keys = {key.id: (key.public, key.maker) for key in keys}
        urls = [key.url for key in keys if key.maker == "api" and key.url]
        self.sign_in_url = urls[-1] if urls else ""

    def _require(self) -> Registry:
        if self._registry is None:
            raise RegistryAway("the registry is away")
        return self._registry
