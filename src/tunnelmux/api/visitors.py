"""The texts that this API signs for visitors of devices: tickets of people who signed in, and
links.

The keys are those of `browser_sessions.key_file`, so that all processes with that file sign alike.
Their public keys are in the registry, where proxies find them. A key that is removed from the file
is no longer trusted after the next start.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, NoReturn

import trio

from tunnelmux.access.signatures import PublicKeys, Signer
from tunnelmux.api.problems import Refused
from tunnelmux.errors import RegistryError
from tunnelmux.observability import get_logger
from tunnelmux.registry import Membership, Registry, ServiceLink, SigningKey
from tunnelmux.wire import VISITOR_PATH

__all__ = ["VisitorProofs"]

_log = get_logger("api.visitors")

_PUBLISH = 3600.0
# Seconds between two publications of the keys: each is valid for a day.

_ASKED_LIFETIME = 600.0
_SKEW = 30.0
# Seconds a person has for signing in, and by which clocks may differ.

_VISITOR_PATH = VISITOR_PATH.decode("ascii")


class VisitorProofs:
    """Signs tickets and links. `public_url` is the URL at which people sign in."""

    def __init__(
        self,
        registry: Registry,
        signers: list[Signer],
        public_url: str,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._signers = signers
        self._url = public_url.rstrip("/")
        self._now = now

    async def publish(self) -> None:
        """Publish our keys, and withdraw our earlier ones. Raises RegistryError."""
        visitors = self._registry.visitors
        # The one that signs comes last: proxies take the URL of the newest.
        for signer in reversed(self._signers):
            await visitors.publish_key(signer.key_id, signer.public, maker="api", url=self._url)
        await visitors.withdraw_keys("api", [signer.key_id for signer in self._signers])

    async def keep_published(self) -> NoReturn:
        """Publish the keys again and again, until cancelled."""
        while True:
            try:
                await self.publish()
            except RegistryError as exc:
                _log.warning("keys not published", problem=str(exc))
                await trio.sleep(_PUBLISH / 60)
            else:
                await trio.sleep(_PUBLISH)

    async def read_asked(self, text: str) -> dict[str, Any]:
        """Read a proxy's signed text about a visitor who has to sign in. Raises Refused if none of
        our proxies signed it, or if it is too old: a stranger must not be able to redirect a
        browser."""
        keys = {key.id: (key.public, key.maker) for key in await self._registry.visitors.keys()}
        asked = PublicKeys(keys.get).read("asked", text)
        if asked is None or not -_SKEW <= self._now() - float(asked["t"]) < _ASKED_LIFETIME:
            message = "This sign-in was begun too long ago, or not here: open the service again."
            raise Refused(400, "stale_sign_in", message)
        return asked

    def ticket_url(self, asked: dict[str, Any], session_id: str, who: list[Membership]) -> str:
        """The URL to which the browser of a signed-in person goes. Raises Refused if the person is
        no member of the device's tenant; the proxy checks the rest."""
        if not any(item.tenant_name == asked["n"] and item.tenant_enabled for item in who):
            message = (
                "You are signed in, and no member of the tenant that this device belongs to: ask "
                "one of its owners for an invitation."
            )
            raise Refused(403, "not_a_member", message)
        ticket = self._signers[0].sign(
            "ticket",
            {
                "j": secrets.token_hex(16),
                "g": session_id,
                "t": self._now(),
                **{key: asked[key] for key in "dsobp"},
            },
        )
        return f"{asked['o']}{_VISITOR_PATH}ticket?ticket={ticket}"

    async def visitors_url(self) -> str | None:
        """The URL at which visitors reach devices; None while no proxy has announced one."""
        bases = [key.url for key in await self._registry.visitors.keys() if key.maker == "proxy"]
        return next((url for url in reversed(bases) if url), None)

    async def link_url(self, link: ServiceLink) -> str | None:
        """The URL of a link; None while no proxy has announced an address for visitors."""
        text = self._signers[0].sign(
            "link",
            {
                "j": link.id,
                "d": link.label,
                "s": link.service,
                "e": link.ends.timestamp(),
                **({"o": 1} if link.once else {}),
            },
        )
        base = await self.visitors_url()
        if base is None:
            return None
        label = f"{link.service}--{link.label}" if link.service else link.label
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{label}.{rest}{_VISITOR_PATH}link?link={text}"

    async def proxies_keys(self) -> list[SigningKey]:
        """The keys by which proxies sign assertions."""
        return [key for key in await self._registry.visitors.keys() if key.maker == "proxy"]
