"""GET /internal/visits and POST /internal/visits/{id}/close: list and end visits."""

from __future__ import annotations

from tunnelmux.proxy.internal.answers import Answer, ApiError
from tunnelmux.proxy.internal.bodies import Closed, VisitList
from tunnelmux.proxy.internal.queries import VisitsQuery, read_query
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.visitors.visit import Visit, VisitRegister
from tunnelmux.sessions import VisitSummary

__all__ = ["VisitCalls"]


class VisitCalls:
    """Serves the calls about visits."""

    def __init__(self, visits: VisitRegister) -> None:
        self._visits = visits

    async def list(self, call: Call) -> Answer:
        """The live visits, oldest first; `?device=` selects those of one device."""
        query = read_query(call.query, VisitsQuery)
        of_device = self._visits.of_device
        chosen = of_device(query.device) if query.device else list(self._visits)
        shown = [self._summary(visit) for visit in chosen[: query.limit]]
        return Answer.of(VisitList(shown, len(chosen)))

    async def close(self, call: Call) -> Answer:
        """End a visit."""
        visit = self._visits.find(call.parameters["id"])
        if visit is None:
            raise ApiError("NOT_FOUND", "visit not found")
        visit.cut("closed through the internal API")
        return Answer.of(Closed())

    def _summary(self, visit: Visit) -> VisitSummary:
        bytes_in, bytes_out = visit.bytes
        return VisitSummary(
            id=visit.id,
            way=visit.way,
            device=visit.device,
            service=visit.service or "",
            lease=visit.lease,
            visitor=visit.asked_by,
            scheme=visit.scheme,
            stream=visit.stream,
            since=self._visits.began_at(visit),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            waits_for="" if visit.state == "nothing" else visit.state,
        )
