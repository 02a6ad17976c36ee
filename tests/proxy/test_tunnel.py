"""Agents at the tunnel listener: who gets in, who does not, and what is said about it."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections import Counter
from types import FrameType

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.agents import TunnelBench, gone, known
from support.streams import next_bytes
from tunnelmux.errors import ConnectRefused
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.tunnels.tunnel import TunnelSettings


async def test_an_agent_with_its_token_is_registered_and_reachable(
    nursery: trio.Nursery,
) -> None:
    bench = TunnelBench(nursery)
    async with bench.dial() as agent:
        handle = await bench.arrived()
        ours = await handle.open_stream()
        await ours.send_all(b"hello")
        theirs = await agent.session.accept_stream()
        assert await next_bytes(theirs, 5) == b"hello"
        assert handle.summary().remote_addr == "192.0.2.7:50000"
        assert agent.headers[b"sec-websocket-protocol"] == b"tunnelmux.v1"
        assert b"tunnelmux-token" not in agent.headers


async def test_the_token_may_come_in_the_query_and_is_not_logged(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        async with bench.dial(None, path="/tunnel/connect?token=token-of-dev1"):
            await bench.arrived()
        await gone(bench)
    assert "token-of-dev1" not in str(logs)


@pytest.mark.parametrize(
    ("token", "status", "reason", "fix"),
    [
        (None, 401, "unauthorized", "set proxy.token in agent.toml"),
        ("wrong-token", 401, "unauthorized", "compare proxy.token in agent.toml"),
        ("token-of-old", 403, "device-disabled", "set enabled = true"),
    ],
)
async def test_a_refusal_names_cause_and_fix_at_both_ends(
    nursery: trio.Nursery, token: str | None, status: int, reason: str, fix: str
) -> None:
    bench = TunnelBench(
        nursery, [known("dev1", "token-of-dev1"), known("old", "token-of-old", enabled=False)]
    )
    with capture_logs() as logs, pytest.raises(ConnectRefused) as caught:
        async with bench.dial(token):
            pass
    refused = caught.value
    assert (refused.status, refused.reason, refused.retryable) == (status, reason, False)
    assert fix in str(refused)
    [line] = [line for line in logs if line["event"] == "tunnel refused"]
    assert (line["status"], line["remote"]) == (status, "192.0.2.7:50000")
    assert "wrong-token" not in str(logs)
    assert await bench.store.list() == []


async def test_wrong_tokens_without_end_are_counted_not_written(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        for _ in range(40):
            with pytest.raises(ConnectRefused):
                async with bench.dial("wrong-token"):
                    pass
    assert sum(line["event"] == "tunnel refused" for line in logs) == 30
    [line] = [line for line in logs if line["event"] == "lines left out"]
    assert (line["of"], line["source"]) == ("tunnel refused", "192.0.2.7")


async def test_an_agent_that_connects_without_end_fills_no_log(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery, [known("dev1", "token-of-dev1"), known("dev2", "token-of-dev2")])
    with capture_logs() as logs:
        for _ in range(40):
            async with bench.dial():
                await bench.arrived()
            await trio.testing.wait_all_tasks_blocked()
        async with bench.dial("token-of-dev2"):
            await bench.arrived("dev2")
        await trio.testing.wait_all_tasks_blocked()
    for event in ("session started", "session ended"):
        told = [line["device"] for line in logs if line["event"] == event]
        assert told == ["dev1"] * 30 + ["dev2"]
    [line] = [line for line in logs if line["event"] == "lines left out"]
    assert (line["of"], line["source"]) == ("session started", "dev1")


async def test_what_odd_agents_say_of_themselves_fills_no_log(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery, [known("dev1", "token-of-dev1")])
    with capture_logs() as logs:
        for number in range(40):
            instance = f"process-{number}"
            async with bench.dial(name="x" * 5000, instance=instance):
                await bench.arrived()
                async with bench.dial(name="x" * 5000, instance=f"other-{instance}"):
                    await bench.arrived()
    count = Counter(line["event"] for line in logs)
    assert count["agent calls itself by another name"] == 30
    assert count["two agents with one credential"] <= 30
    left_out = {line["of"] for line in logs if line["event"] == "lines left out"}
    assert "agent calls itself by another name" in left_out
    assert max(len(str(line)) for line in logs) < 1000


async def test_a_refusal_names_the_device_that_was_claimed(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        for name in ("dev7", "x" * 200, None):
            with pytest.raises(ConnectRefused):
                async with bench.dial("wrong-token", name=name):
                    pass
    refused = [line for line in logs if line["event"] == "tunnel refused"]
    assert [line.get("claimed") for line in refused] == ["dev7", "x" * 63, None]


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /elsewhere HTTP/1.1\r\nHost: p\r\n\r\n", b"404"),
        (b"GET /tunnel/connect HTTP/1.1\r\nHost: p\r\n\r\n", b"426"),
        (b"\x16\x03\x01 this is no HTTP at all, but a TLS hello\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_agent_gets_an_answer_and_one_log_line(
    nursery: trio.Nursery, request_head: bytes, status: bytes
) -> None:
    bench = TunnelBench(nursery)
    async with bench.dial():
        await bench.arrived()
        with capture_logs() as logs:
            stranger = await bench.connect_raw("198.51.100.9:1234")
            await stranger.send_all(request_head)
            answer = b"".join([chunk async for chunk in stranger])
            await stranger.aclose()
            await trio.testing.wait_all_tasks_blocked()
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nTunnelmux-Reason: " in answer
        assert [line["event"] for line in logs] == ["tunnel handshake failed"]
        assert await bench.store.find_device("dev1") is not None


async def test_a_second_connection_of_a_device_replaces_the_first_at_once(
    nursery: trio.Nursery,
) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        async with bench.dial() as first:
            old = await bench.arrived()
            async with bench.dial(remote="192.0.2.8:50001"):
                with trio.fail_after(20):
                    await first.session.wait_closed()
                new = await bench.arrived()
                assert new is not old
                assert new.summary().remote_addr == "192.0.2.8:50001"
                await new.open_stream()
        await gone(bench)
    ended = [line for line in logs if line["event"] == "session ended"]
    assert [line["remote"] for line in ended] == ["192.0.2.7:50000", "192.0.2.8:50001"]
    assert ended[0]["reason"] == "replaced by a new connection of the same device"


async def test_a_session_leaves_one_line_with_its_duration_and_bytes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        async with bench.dial() as agent:
            handle = await bench.arrived()
            stream = await handle.open_stream()
            await stream.send_all(b"x" * 1000)
            accepted = await agent.session.accept_stream()
            assert await accepted.receive_some() != b""
            await trio.sleep(7)
            await stream.aclose()
            await accepted.aclose()
        await gone(bench)
    [line] = [line for line in logs if line["event"] == "session ended"]
    assert line["device"] == "dev1"
    assert 7 <= line["duration"] < 8
    assert line["bytes_to_agent"] >= 1000
    assert line["bytes_from_agent"] > 0
    assert line["log_level"] == "info"
    assert bench.store.last_seen("dev1") is not None


async def test_a_peer_that_speaks_no_yamux_ends_only_its_own_session(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = TunnelBench(nursery, [known("dev1", "token-of-dev1"), known("dev2", "token-of-dev2")])
    async with bench.dial() as good:
        handle = await bench.arrived()
        with capture_logs() as logs:
            stranger = await bench.connect_raw("198.51.100.9:1234")
            await stranger.send_all(
                b"GET /tunnel/connect?token=token-of-dev2 HTTP/1.1\r\nHost: p\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                # One masked binary message (mask of zeros) that is not a yamux frame.
                b"\x82\x8c\0\0\0\0SSH-2.0-open"
            )
            with contextlib.suppress(trio.BrokenResourceError):
                async for _ in stranger:
                    pass
            with trio.fail_after(20):
                while len(bench.server.sessions) > 1:  # noqa: ASYNC110  no event says so
                    await trio.sleep(0.01)
        [ended] = [line for line in logs if line["event"] == "session ended"]
        assert (ended["device"], ended["log_level"]) == ("dev2", "warning")
        assert "version" in ended["reason"]
        stream = await handle.open_stream()
        await stream.send_all(b"still here")
        accepted = await good.session.accept_stream()
        assert await next_bytes(accepted, 10) == b"still here"


async def test_a_stream_that_an_agent_opens_is_reset(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    async with bench.dial() as agent:
        await bench.arrived()
        stream = await agent.session.open_stream()
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert not agent.session.is_closed


async def test_a_slow_handshake_is_cut(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = TunnelBench(
        nursery, settings=TunnelSettings(ingress=IngressLimits(handshake_timeout=10.0))
    )
    with capture_logs() as logs:
        slow = await bench.connect_raw()
        started = trio.current_time()
        await slow.send_all(b"GET /tunnel/connect HTTP/1.1\r\n")
        answer = b"".join([chunk async for chunk in slow])
        await slow.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert answer.startswith(b"HTTP/1.1 408")
    assert 10 <= trio.current_time() - started < 12
    assert [line["event"] for line in logs] == ["tunnel handshake failed"]


async def test_handshakes_in_flight_are_bounded_and_sessions_do_not_count(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = TunnelBench(nursery, max_handshakes=3)
    async with bench.dial():
        await bench.arrived()
        flood = [await bench.connect_raw(f"198.51.100.{n}:1") for n in range(3)]
        with capture_logs() as logs:
            refused = await bench.connect_raw("198.51.100.3:1")
            assert await refused.receive_some() == b"", "a fourth handshake was begun"
        [line] = logs
        assert (line["event"], line["reason"]) == ("connections refused", "no-place")
        # The three are cut after the handshake timeout, and the next one is served.
        await trio.sleep(12)
        async with bench.dial(remote="198.51.100.4:1"):
            assert len(bench.server.admission) == 0
        for stream in flood:
            await stream.aclose()


async def test_a_silent_agent_is_noticed_and_unregistered(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = TunnelBench(nursery)
    stream = await bench.connect_raw()
    await stream.send_all(
        b"GET /tunnel/connect?token=token-of-dev1 HTTP/1.1\r\nHost: p\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await bench.arrived()
    started = trio.current_time()
    with capture_logs() as logs:
        await gone(bench)
    assert trio.current_time() - started <= 20
    assert await bench.store.find_device("dev1") is None
    assert [line["event"] for line in logs] == ["session ended"]


async def test_while_draining_new_agents_are_told_to_come_back(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    bench.server.is_draining = True
    with pytest.raises(ConnectRefused) as caught:
        async with bench.dial():
            pass
    refused = caught.value
    assert (refused.status, refused.retryable, refused.retry_after) == (503, True, 1.0)


async def test_an_agent_that_leaves_during_the_handshake_is_one_log_line(
    nursery: trio.Nursery,
) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        stream = await bench.connect_raw()
        await stream.send_all(b"GET /tunnel/connect HTTP/1.1\r\n")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert [line["event"] for line in logs] == ["tunnel handshake failed"]


async def test_what_ends_without_a_session_is_told_once(nursery: trio.Nursery) -> None:
    """A health check that connects and says nothing among it."""
    bench = TunnelBench(nursery)
    left: list[str] = []
    bench.server.tell_left = lambda: left.append("left")
    await (await bench.connect_raw()).aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert len(left) == 1
    with pytest.raises(ConnectRefused):
        async with bench.dial("no-token"):
            pass
    await trio.testing.wait_all_tasks_blocked()
    assert len(left) == 2
    async with bench.dial():
        await bench.arrived()
    await trio.testing.wait_all_tasks_blocked()
    assert (len(left), bench.server.sessions) == (2, [])


class ReloadedMeanwhile(DeviceRegister):
    """A reload takes every device away right after a token was found good."""

    def identify(self, token: str) -> KnownDevice | None:
        found = super().identify(token)
        self.replace_configured([])
        return found


async def test_a_device_removed_during_its_handshake_does_not_get_in(
    nursery: trio.Nursery,
) -> None:
    bench = TunnelBench(nursery, register=ReloadedMeanwhile)
    with capture_logs() as logs, trio.fail_after(20):
        async with bench.dial() as agent:
            await agent.session.wait_closed()
        await gone(bench)
    assert [line["event"] for line in logs] == ["session ended"]
    assert logs[0]["reason"] == "the device was removed or changed by a reload"
    assert bench.store.last_seen("dev1") is None


async def test_an_agent_under_another_name_is_let_in_and_told_about(
    nursery: trio.Nursery,
) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        async with bench.dial(name="dev7"):
            await bench.arrived("dev1")
    [line] = [line for line in logs if line["log_level"] == "warning"]
    assert (line["device"], line["name"]) == ("dev1", "dev7")


async def steps_of_a_handshake(devices: int) -> int:
    """The lines of the proxy's own code that run from an agent's dialling to its session."""
    known_devices = [
        KnownDevice(name=f"dev{n}", token_sha256=hashlib.sha256(b"token-%d" % n).digest())
        for n in range(devices)
    ]
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> object:
        nonlocal steps
        file = frame.f_code.co_filename
        if "/tunnelmux/proxy/" not in file and "/tunnelmux/sessions/" not in file:
            return None
        steps += event == "line"
        return count

    async with trio.open_nursery() as nursery:
        bench = TunnelBench(nursery, known_devices)
        sys.settrace(count)
        try:
            async with bench.dial("token-7"):
                await bench.arrived("dev7")
                sys.settrace(None)
        finally:
            sys.settrace(None)
        nursery.cancel_scope.cancel()
    return steps


@pytest.mark.slow
async def test_a_handshake_costs_the_same_with_any_number_of_known_devices() -> None:
    few, many = await steps_of_a_handshake(10), await steps_of_a_handshake(100_000)
    assert 20 < few < 1000
    assert many == few
