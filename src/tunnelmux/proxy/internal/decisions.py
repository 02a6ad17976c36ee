"""GET /internal/access: whether a person may reach a service now, and by which rule."""

from __future__ import annotations

from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.proofs import Grant, Sender
from tunnelmux.proxy.access.rules import tenant_of
from tunnelmux.proxy.internal.answers import Answer, ApiError
from tunnelmux.proxy.internal.queries import AccessQuery, read_query
from tunnelmux.proxy.internal.routes import Call

__all__ = ["DecisionCalls"]


class DecisionCalls:
    """Answers the calls about who may come in."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        """The gate of visitors; None in a server that has none."""

    async def decide(self, call: Call) -> Answer:
        """What the gate would do with this person."""
        if self.gate is None:
            raise ApiError("NOT_FOUND", "there are no visitors here")
        query = read_query(call.query, AccessQuery)
        grant = Grant("session", "")
        grant.user_id, grant.name = query.user, query.name
        if query.role:
            grant.roles = {tenant_of(query.device): query.role}
        sender = Sender(query.address) if query.address else None
        return Answer.of(self.gate.decide(query.device, query.service or None, grant, sender))
