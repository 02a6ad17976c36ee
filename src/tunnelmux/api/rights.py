"""Ends calls that last when their caller loses the right to them: a token that is revoked, a member
who is removed, a role that becomes lower, at any copy of the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tunnelmux.api.access import Principal
from tunnelmux.api.event_stream import RECHECK
from tunnelmux.api.identity import Identification
from tunnelmux.api.problems import Refused, problem_response

__all__ = ["LOST", "RightfulResponse", "Rights"]

LOST = "your access to this has ended"
"""What the caller is told."""

_KNOWN = RECHECK / 2
# Seconds for which one look at the registry serves all calls of the same caller.


class Rights:
    """Looks again whether callers still may what they do, `RECHECK` seconds after the last look.

    While the registry is away, what goes on goes on.
    """

    def __init__(self, identification: Identification) -> None:
        self._identification = identification
        self._calls: Counter[Principal] = Counter()
        self._seen: dict[Principal, float] = {}

    async def run(
        self, connection: HTTPConnection, principal: Principal, work: Callable[[], Awaitable[None]]
    ) -> bool:
        """Run it to its end; False when it was cancelled because the caller has lost the right."""
        problem: Exception | None = None
        lost = False

        async def watch() -> None:
            nonlocal lost
            while await self._may_still(connection, principal):  # noqa: ASYNC110  no event tells
                await trio.sleep(RECHECK)
            lost = True
            nursery.cancel_scope.cancel(reason=LOST)

        self._calls[principal] += 1
        self._seen[principal] = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                try:
                    await work()
                except Exception as exc:  # noqa: BLE001 - kept from the nursery's group
                    problem = exc
                nursery.cancel_scope.cancel()
        finally:
            self._calls[principal] -= 1
            if not self._calls[principal]:
                del self._calls[principal], self._seen[principal]
        if problem is not None:
            raise problem
        return not lost

    async def _may_still(self, connection: HTTPConnection, principal: Principal) -> bool:
        now = trio.current_time()
        if now - self._seen[principal] < _KNOWN:
            return True
        try:
            found = await self._identification(connection)
        except Refused:
            return True
        if found is None or found.tenant_id != principal.tenant_id:
            return False
        if (found.role or 0) < (principal.role or 0):
            return False
        self._seen[principal] = now
        return True


class RightfulResponse(Response):
    """Another response, cut when its caller loses the right to it; before it has begun, 401."""

    def __init__(
        self, rights: Rights, request: HTTPConnection, principal: Principal, inner: Response
    ) -> None:
        super().__init__()
        self._rights = rights
        self._request = request
        self._principal = principal
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; called by the framework."""
        has_begun = False

        async def note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        async def work() -> None:
            await self._inner(scope, receive, note)

        # An answer that was cut short is not ended here: it must not look complete.
        if not await self._rights.run(self._request, self._principal, work) and not has_begun:
            refusal = problem_response(401, "not_signed_in", f"{LOST.capitalize()}.")
            await refusal(scope, receive, send)
