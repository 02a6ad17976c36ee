"""GET /internal/traffic: the devices with the most traffic, and the sum of the others."""

from __future__ import annotations

import heapq

from tunnelmux.proxy.access.rules import tenant_of
from tunnelmux.proxy.internal.answers import Answer
from tunnelmux.proxy.internal.queries import TrafficQuery, read_query
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.visitors.visit import VisitRegister
from tunnelmux.sessions import DeviceStore, LocalHandle
from tunnelmux.sessions.traffic import DeviceTraffic, OtherTraffic, TrafficList

__all__ = ["TrafficCalls", "moved"]


class TrafficCalls:
    """Serves traffic by device, which metrics leave out because they have no label for devices."""

    def __init__(self, store: DeviceStore, visits: VisitRegister) -> None:
        self._store = store
        self._visits = visits

    async def list(self, call: Call) -> Answer:
        """The devices that moved the most bytes since they connected; `?top=` says how many,
        `?tenant=` whose.
        """
        query = read_query(call.query, TrafficQuery)
        all_of_them = [
            self._of(handle)
            for summary in await self._store.list()
            if query.tenant in ("", tenant_of(summary.device_id))
            and isinstance(handle := self._store.live_device(summary.device_id), LocalHandle)
        ]
        shown = heapq.nlargest(query.top, all_of_them, key=moved)
        rest = OtherTraffic(
            devices=len(all_of_them) - len(shown),
            bytes_to_device=sum(one.bytes_to_device for one in all_of_them)
            - sum(one.bytes_to_device for one in shown),
            bytes_from_device=sum(one.bytes_from_device for one in all_of_them)
            - sum(one.bytes_from_device for one in shown),
        )
        return Answer.of(TrafficList(shown, rest))

    def _of(self, handle: LocalHandle) -> DeviceTraffic:
        summary, session = handle.summary(), handle.session
        return DeviceTraffic(
            device=summary.device_id,
            connected_at=summary.connected_at,
            bytes_to_device=session.bytes_sent,
            bytes_from_device=session.bytes_received,
            streams=session.stream_count,
            visits=len(self._visits.of_device(summary.device_id)),
        )


def moved(one: DeviceTraffic) -> tuple[int, str]:
    """What the busiest are found by."""
    return one.bytes_to_device + one.bytes_from_device, one.device
