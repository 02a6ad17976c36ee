"""TCP ports: bytes to a service and back, and a reset where that cannot be."""

from __future__ import annotations

import pytest
import structlog
import trio

from support.ingress import running_site
from tunnelmux.limits import IngressLimits, Limits

AGREED = b"HTTP/1.1 200 OK\r\n\r\n"


async def test_bytes_both_ways_and_half_close() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site, site.agent() as agent:
            visitor = site.dial("ssh")
            stream = await agent.stream()
            head = await stream.read_head()
            assert head.startswith(b"CONNECT ssh HTTP/1.1\r\n")
            await visitor.send(b"SSH-2.0-client\r\n")
            assert await stream.read_exactly(16) == b"SSH-2.0-client\r\n"  # before the answer
            await visitor.end()
            assert await stream.read_all() == b""
            await stream.send(AGREED + b"late answer")
            assert await visitor.read_exactly(11) == b"late answer"
            await stream.end()
            assert await visitor.read_all() == b""
            await trio.testing.wait_all_tasks_blocked()
    (line,) = [line for line in lines if line["event"] == "relay"]
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "relay",
        "log_level": "info",
        "device": "dev1",
        "service": "ssh",
        "visitor": "203.0.113.7:50000",
        "stream": 2,
        "bytes_in": 16,
        "bytes_out": 11,
    }


async def test_refused_service_is_a_reset_and_one_line_says_why() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site, site.agent() as agent:
            visitor = site.dial("telnet")
            stream = await agent.stream()
            await stream.send(
                b"HTTP/1.1 404 Not Found\r\nTunnelmux-Reason: unknown-service\r\n"
                b"Content-Length: 16\r\n\r\nNo telnet here.\n"
            )
            with pytest.raises(trio.BrokenResourceError):
                await visitor.read_all()
            await trio.testing.wait_all_tasks_blocked()
    (line,) = [line for line in lines if line["event"].startswith("relay")]
    assert line["log_level"] == "warning"
    assert line["reason"] == "unknown-service"
    assert "No telnet here." in line["problem"]


@pytest.mark.parametrize(
    ("device", "reason"),
    [("dev1", "device-offline"), ("dev9", "unknown-device"), ("dev3", "device-disabled")],
)
async def test_device_that_cannot_be_reached_is_a_reset(device: str, reason: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site:
            visitor = site.dial(device=device)
            with pytest.raises(trio.BrokenResourceError):
                await visitor.read_all()
            await trio.testing.wait_all_tasks_blocked()
    assert [line["reason"] for line in lines] == [reason]


async def test_visitor_waits_for_a_device_just_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_site() as site:
        async with site.agent():
            pass
        visitor = site.dial()
        await visitor.send(b"early bytes")
        await trio.sleep(2)
        async with site.agent() as agent:
            stream = await agent.stream()
            await stream.read_head()
            assert await stream.read_exactly(11) == b"early bytes"


async def test_silent_agent_is_a_reset_in_time(autojump_clock: trio.testing.MockClock) -> None:
    limits = IngressLimits(connect_timeout=10)
    with structlog.testing.capture_logs() as lines:
        async with running_site(limits=limits) as site, site.agent() as agent:
            start = trio.current_time()
            visitor = site.dial()
            await agent.stream()
            with pytest.raises(trio.BrokenResourceError):
                await visitor.read_all()
            assert trio.current_time() - start == pytest.approx(15)
            await trio.testing.wait_all_tasks_blocked()
    assert "no answer within 15 s" in lines[-1]["problem"]


@pytest.mark.parametrize("visitor_breaks", [True, False])
async def test_reset_goes_through_to_the_other_side(visitor_breaks: bool) -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.dial()
        stream = await agent.stream()
        await stream.read_head()
        await stream.send(AGREED + b"x")
        await visitor.read_exactly(1)
        breaking, other = (visitor, stream) if visitor_breaks else (stream, visitor)
        breaking.stream.reset()
        with pytest.raises(trio.BrokenResourceError):
            await other.read_all()


async def test_lost_tunnel_is_a_reset() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.dial()
        stream = await agent.stream()
        await stream.send(AGREED + b"half")
        await visitor.read_exactly(4)
        agent.session.abort()
        with pytest.raises(trio.BrokenResourceError):
            await visitor.read_all()


async def test_one_visitor_too_many_is_a_reset() -> None:
    async with running_site(limits=IngressLimits(max_visitors=1)) as site, site.agent() as agent:
        site.dial("ssh")
        await agent.stream()
        second = site.dial("ssh")
        with pytest.raises(trio.BrokenResourceError):
            await second.read_all()
        other_port = site.dial("vnc")  # each port counts for itself
        assert b"CONNECT vnc" in await (await agent.stream()).read_head()
        await other_port.stream.aclose()


async def test_cancelled_relay_resets_both_sides() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site, site.agent() as agent:
            visitor = site.dial()
            stream = await agent.stream()
            await stream.read_head()
            site._nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                with pytest.raises(trio.BrokenResourceError):
                    await visitor.read_all()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.read_all()
    assert lines[-1]["problem"] == "cut by the proxy's end"


async def test_one_address_gets_so_many_streams_and_another_still_one() -> None:
    limits = IngressLimits(max_streams_per_visitor=2)
    with structlog.testing.capture_logs() as lines:
        async with running_site(limits=limits) as site, site.agent() as agent:
            first = site.dial()
            its_stream = await agent.stream()
            site.dial()
            await agent.stream()
            with pytest.raises(trio.BrokenResourceError):
                await site.dial().read_all()
            other = site.dial(remote="198.51.100.1:1")
            stream = await agent.stream()
            await stream.read_head()
            await stream.send(AGREED + b"x")
            assert await other.read_exactly(1) == b"x"
            its_stream.stream.reset()
            with pytest.raises(trio.BrokenResourceError):
                await first.read_all()
            site.dial()
            await agent.stream()
    [line] = [line for line in lines if line["event"] == "relay refused"]
    assert line["reason"] == "too-many-visitors"
    assert "203.0.113.7 (limits.max_streams_per_visitor)" in line["problem"]


async def test_a_crowd_at_one_port_leaves_others_their_streams() -> None:
    limits = IngressLimits(max_streams_per_port=3)
    with structlog.testing.capture_logs() as lines:
        async with running_site(limits=limits) as site, site.agent() as agent:
            crowd = [site.dial(remote=f"198.51.100.{number}:1") for number in range(3)]
            streams = [await agent.stream() for _ in crowd]
            with pytest.raises(trio.BrokenResourceError):
                await site.dial(remote="198.51.100.9:1").read_all()
            site.dial(service="other", remote="198.51.100.9:1")
            await agent.stream()
            streams[0].stream.reset()
            with pytest.raises(trio.BrokenResourceError):
                await crowd[0].read_all()
            site.dial(remote="198.51.100.9:1")
            await agent.stream()
    [line] = [line for line in lines if line["event"] == "relay refused"]
    assert line["reason"] == "too-many-visitors"
    assert "limits.max_streams_per_port" in line["problem"]


async def test_visitors_leave_streams_in_reserve_for_the_back_end() -> None:
    limits = IngressLimits(reserved_streams=2)
    with structlog.testing.capture_logs() as lines:
        async with (
            running_site(limits=limits) as site,
            site.agent(limits=Limits(max_streams=16)) as agent,
        ):
            for _ in range(14):
                site.dial()
                await agent.stream()
            with pytest.raises(trio.BrokenResourceError):
                await site.dial().read_all()
            handle = await site.store.find_device("dev1")
            assert handle is not None
            for _ in range(2):
                async with await handle.open_stream() as ours:
                    await ours.send_all(b"from the back end")
                    theirs = await agent.stream()
                    assert await theirs.read_exactly(17) == b"from the back end"
    [line] = [line for line in lines if line["event"] == "relay refused"]
    assert line["reason"] == "device-busy"
