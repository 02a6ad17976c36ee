"""The inspector by the internal API: begun, looked at, repeated, bounded, ended."""

from __future__ import annotations

import pytest
import trio

from support.internal import Bench, running_bench
from tunnelmux.backend import ApiCallFailed
from tunnelmux.errors import SessionNotFound
from tunnelmux.http import RequestHead
from tunnelmux.limits import InternalLimits
from tunnelmux.proxy.visitors.inspector import TappedRequest


def kept_request(bench: Bench, body: bytes = b"", **more: str) -> TappedRequest:
    """A request as the ingress has one kept."""
    inspection = bench.dispatcher.visits.inspector.get("inspection-1")
    assert inspection is not None
    fields = [(b"Host", b"dev1.example"), (b"Accept", b"text/plain"), (b"Cookie", b"a=1")]
    fields += [(name.encode(), value.encode()) for name, value in more.items()]
    head = RequestHead(b"POST", b"/x?token=t", b"1.1", fields)
    tapped = inspection.tap(head, "192.0.2.1:5", "https")
    tapped.asked(body)
    tapped.over(200)
    return tapped


async def test_it_is_begun_looked_at_and_ended() -> None:
    async with running_bench() as bench:
        begun = await bench.client.begin_inspection(
            "inspection-1", "dev1", "web", 60, bodies=True, askedBy="ada"
        )
        assert (begun.device, begun.service, begun.asked_by) == ("dev1", "web", "ada")
        assert await bench.client.list_inspections() == [begun]
        tapped = kept_request(bench, b"abc")
        inspection, [request] = await bench.client.get_inspection("inspection-1")
        assert (inspection.seen, request.id, request.body) == (1, tapped.id, None)
        whole = await bench.client.inspected_request("inspection-1", tapped.id)
        assert (whole.body, whole.target) == (b"abc", "/x?token=***")
        await bench.client.end_inspection("inspection-1")
        with pytest.raises(SessionNotFound):
            await bench.client.get_inspection("inspection-1")


async def test_a_request_is_sent_again_without_its_secrets() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        await bench.client.begin_inspection("inspection-1", "dev1", "web", 60, bodies=True)
        tapped = kept_request(bench, b"abc")
        heads: list[bytes] = []

        async def serve() -> None:
            heads.append(await agent.serve(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            again = await bench.client.inspected_request("inspection-1", tapped.id, replay=True)
        assert (again.replay_of, again.status, again.answer_body) == (tapped.id, 201, b"ok")
        assert b"POST /x?token=*** HTTP/1.1" in heads[0]
        assert b"Tunnelmux-Service: web" in heads[0]
        assert b"Accept: text/plain" in heads[0]
        assert b"Cookie" not in heads[0]
        _, requests = await bench.client.get_inspection("inspection-1")
        assert [one.id for one in requests] == [again.id, tapped.id]


async def test_what_a_visitor_says_of_itself_is_not_said_again_in_our_name() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        await bench.client.begin_inspection("inspection-1", "dev1", "web", 60, bodies=True)
        forged = {
            "tunnelmux-service": "admin",
            "Tunnelmux-User": "root",
            "tunnelmux_user": "root",
            "Remote-User": "root",
            "X-Forwarded-User": "root",
            "X-Forwarded-For": "10.0.0.1",
            "X-Original-URL": "/admin",
        }
        tapped = kept_request(bench, b"abc", **forged)
        heads: list[bytes] = []

        async def serve() -> None:
            heads.append(await agent.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await bench.client.inspected_request("inspection-1", tapped.id, replay=True)
        assert b"Accept: text/plain" in heads[0]
        assert b"Tunnelmux-Service: web" in heads[0]
        for lie in (b"root", b"admin", b"10.0.0.1"):
            assert lie not in heads[0]


async def test_what_was_not_kept_whole_is_not_sent_again() -> None:
    async with running_bench() as bench, bench.agent():
        await bench.client.begin_inspection("inspection-1", "dev1", "web", 60, bodies=True)
        tapped = kept_request(bench, b"x" * 70_000)
        with pytest.raises(ApiCallFailed, match="not kept completely"):
            await bench.client.inspected_request("inspection-1", tapped.id, replay=True)


async def test_there_are_so_many_for_so_long() -> None:
    limits = InternalLimits(max_inspections=1, max_inspection_time=100)
    async with running_bench(limits=limits) as bench:
        client = bench.client
        with pytest.raises(ApiCallFailed, match="max_inspection_time"):
            await client.begin_inspection("inspection-1", "dev1", "web", 101)
        await client.begin_inspection("inspection-1", "dev1", "web", 100)
        with pytest.raises(ApiCallFailed, match="TOO_MANY_INSPECTIONS"):
            await client.begin_inspection("inspection-2", "dev1", "other", 100)
        await client.begin_inspection("inspection-3", "dev1", "web", 100)
        assert [one.id for one in await client.list_inspections()] == ["inspection-3"]


async def test_the_oldest_requests_make_room() -> None:
    limits = InternalLimits(inspection_requests=3, inspection_memory=150_000)
    async with running_bench(limits=limits) as bench:
        await bench.client.begin_inspection("inspection-1", "dev1", "web", 60, bodies=True)
        ids = [kept_request(bench).id for _ in range(5)]
        inspection, requests = await bench.client.get_inspection("inspection-1")
        assert [one.id for one in requests] == ids[:1:-1]
        assert (inspection.seen, inspection.forgotten) == (5, 2)
        last = [kept_request(bench, b"x" * 65_536).id for _ in range(3)]
        _, requests = await bench.client.get_inspection("inspection-1")
        assert [one.id for one in requests] == last[:0:-1]
        assert bench.dispatcher.visits.inspector.kept_bytes <= 150_000


async def test_a_tenants_services_take_three_quarters_of_the_inspections_at_most() -> None:
    async with running_bench(limits=InternalLimits(max_inspections=4)) as bench:
        begin = bench.client.begin_inspection
        for number in range(3):
            await begin(f"inspection-{number}", f"dev{number}--evil", "web", 60)
        with pytest.raises(ApiCallFailed, match="of this tenant"):
            await begin("inspection-3", "dev3--evil", "web", 60)
        await begin("inspection-4", "dev1--good", "web", 60)
