"""ProxyClient.exec against the API itself."""

from __future__ import annotations

import pytest
import trio

from support.exec_agent import exec_agents
from support.http_rig import Peer
from support.internal import Bench, running_bench
from support.resettable import resettable_pair
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.commands import CommandRequest, Exited, Output, Started
from tunnelmux.errors import ConnectError

BEGIN = b'{"event":"begin","commandId":"c","devices":["d"]}\n'
STARTED = b'{"device":"d","event":"started","commandId":"c","at":1}\n'


def request(command: str, **more: object) -> CommandRequest:
    content = {"commandId": "c", "host": "h", "username": "u", "command": command, **more}
    return CommandRequest.from_json(content)


async def test_events_come_by_device() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1", "dev2"):
        async with bench.client.exec("dev*", request("echo hi"), asked_by="bob") as events:
            assert events.command_id == "c"
            assert events.devices == ["dev1", "dev2", "dev3"]
            got = [pair async for pair in events]
        assert ("dev1", Started("c.dev1", 1_700_000_000.5)) in got
        assert ("dev2", Output("stdout", b"hi from dev2\n")) in got
        ends = {device: event for device, event in got if isinstance(event, Exited)}
        assert {device: end.reason for device, end in ends.items()} == {
            "dev1": None,
            "dev2": None,
            "dev3": "device-offline",
        }
        assert {record.asked_by for record in bench.records.all} == {"bob (192.0.2.9:40000)"}


async def test_results_come_as_a_list() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        [result] = await bench.client.exec_results(["dev1"], request("exit 3"))
    assert (result.device, result.command_id, result.duration) == ("dev1", "c", 0.5)
    assert (result.result.stderr, result.result.exit_code) == ("no luck\n", 3)


async def test_leaving_the_block_ends_the_commands() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1") as agents:
        async with bench.client.exec("dev1", request("sleep 1000")) as events:
            assert isinstance((await anext(events))[1], Started)
        with trio.fail_after(20):
            while agents["dev1"].running:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert agents["dev1"].ended_early == 1


async def test_what_was_refused_says_why() -> None:
    async with running_bench() as bench:
        with pytest.raises(ApiCallFailed, match=r"UNKNOWN_DEVICE \(404\)"):
            async with bench.client.exec("nobody", request("ls")):
                pass
        with pytest.raises(ApiCallFailed, match="concurrency must be"):
            await bench.client.exec_results("dev1", request("ls"), concurrency=0)
        bench.client._secret = "wrong"
        with pytest.raises(ApiCallFailed, match="UNAUTHORIZED"):
            async with bench.client.exec("dev1", request("ls")):
                pass


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "without an answer"),
        (b'{"event":"begin","commandId":"c","devices":["d"]}\n', "before every command"),
        (b'{"event":"exit"}\n', "does not list the devices"),
        (b'{"event":"begin","commandId":"c"}\n', "is malformed"),
        (b'{"event":"begin","commandId":"c","devices":[1]}\n', "is malformed"),
        (b"[" * 100_000 + b"\n", "not a JSON object"),
        (b" " * 1_100_000, "longer than 1048576 bytes"),
        (BEGIN + b'{"event":"end","succeeded":1,"failed":0}\n', "before every command"),
        (BEGIN + STARTED * 2, "a second started"),
        (BEGIN + STARTED.replace(b'"d"', b'"e"'), "a device that was not asked for"),
        (BEGIN + STARTED.replace(b'"c"', b'"x"'), "commandId of another"),
        (b"[]\n", "not a JSON object"),
        (b"what\n", "not a JSON object"),
        (
            b'{"event":"begin","commandId":"c","devices":["d"]}\n{"device":"d","event":"other"}\n',
            "is malformed",
        ),
    ],
)
async def test_an_answer_that_breaks_off_is_an_error(answer: bytes, problem: str) -> None:
    front, back = resettable_pair()

    async def dial() -> trio.abc.Stream:
        return front

    async def serve() -> None:
        peer = Peer(back)
        await peer.read_head()
        if answer:
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
            await peer.send(head + answer)
        await peer.end()

    client = ProxyClient("http://127.0.0.1:3801", dial=dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectError, match=problem):
            async with client.exec("d", request("ls")) as events:
                async for _ in events:
                    pass


async def test_a_proxy_that_falls_silent_is_noticed(autojump_clock: object) -> None:
    front, back = resettable_pair()

    async def dial() -> trio.abc.Stream:
        return front

    client = ProxyClient("http://127.0.0.1:3801", dial=dial)
    begin = b'{"event":"begin","commandId":"c","devices":["d"]}\n'
    await back.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + begin)
    started = trio.current_time()
    with pytest.raises(ConnectError, match="was lost"):
        async with client.exec("d", request("ls")) as events:
            await anext(events)
    assert trio.current_time() - started == pytest.approx(45)


async def test_an_older_proxy_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_bench() as bench:
        _forget_route(bench)
        with pytest.raises(ApiCallFailed, match="update it"):
            async with bench.client.exec("dev1", request("ls")):
                pass
        with pytest.raises(ApiCallFailed, match="update it"):
            await bench.client.exec_results("dev1", request("ls"))


def _forget_route(bench: Bench) -> None:
    table = bench.server.table
    table.routes = tuple(route for route in table.routes if route.path != "/internal/exec")
