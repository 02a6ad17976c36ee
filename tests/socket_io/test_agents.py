"""Agents of the proxy's Socket.IO side: what moves to another, what is lost, what is refused."""

from __future__ import annotations

import io
import re
from contextlib import asynccontextmanager

import pytest
import trio

from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side, known_agent, limits_with, request
from tunnelmux.access.addresses import AddressLists
from tunnelmux.commands import Exited, Started, Truncated
from tunnelmux.config import SocketIOAgent, hash_token
from tunnelmux.errors import ConnectRefused
from tunnelmux.observability import configure_logs
from tunnelmux.socketio import SocketOver, connect_socketio, parse_socketio_url

OFFICE = [known_agent("proxy-1", "office"), known_agent("proxy-2", "office")]
CONFIRMS = {"confirmsStart": True, "instance": "one"}


async def next_command(socket):
    with trio.fail_after(20):
        while (event := await socket.receive()).name != "execute_command":
            pass
        return event.args[0]


async def answer(socket, command_id="c1", **result):
    content = {"stdout": "", "stderr": "", "exitCode": 0} | result
    await socket.emit("command_result", {"commandId": command_id, "result": content})


class Run:
    """A command on its way; `end` once it is there."""

    def __init__(self) -> None:
        self.events = []
        self.end: Exited | None = None
        self._done = trio.Event()

    async def run(self, side, name, command):
        self.events, self.end = await side.run(name, command)
        self._done.set()

    async def ended(self) -> Exited:
        with trio.fail_after(20):
            await self._done.wait()
        assert self.end is not None
        return self.end


@asynccontextmanager
async def running(side, name, command=None):
    run = Run()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run, side, name, command or request())
        yield run
        if run.end is None:
            nursery.cancel_scope.cancel()


# -- what is asked and what comes back ------------------------------------------------------


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_the_agent_gets_the_fields_of_the_specification(transports):
    async with agent_side() as side, side.agent(transports=transports) as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID, request(serverId=123, privateKey="KEY")) as run:
            assert await next_command(agent) == {
                "commandId": "c1",
                "serverId": 123,
                "host": "192.0.2.7",
                "port": 22,
                "username": "root",
                "password": "pw",
                "privateKey": "KEY",
                "command": "echo hello",
                "timeout": 30_000,
            }
            await answer(agent, stdout="hello\n")
            assert (await run.ended()).stdout_bytes == 6
            event = await agent.receive()
            assert event.name == "command_result_received"
            assert event.args == [{"success": True, "commandId": "c1"}]


ODD_RESULTS = [
    ({"exitCode": None}, Exited(255), None),
    ({"exitCode": -9}, Exited(137), None),
    ({"exitCode": "0"}, Exited(255, reason="failed"), "exitCode is not a whole number"),
    ({"exitCode": True}, Exited(255, reason="failed"), "exitCode is not a whole number"),
    ({"stdout": 5}, Exited(255, reason="failed"), "stdout is not a text"),
    ({"stderr": ["a"]}, Exited(255, reason="failed"), "stderr is not a text"),
    ({"stdout": None}, Exited(0), None),
    ({"stdout": "\ud800"}, Exited(0), None),
    ({"exitCode": 10**30}, Exited(2**31), None),
    ({"reason": "timeout", "exitCode": 124}, Exited(124, reason="timeout"), None),
    ({"reason": "no-such-reason"}, Exited(0), None),
]


@pytest.mark.parametrize(("result", "end", "message"), ODD_RESULTS)
async def test_odd_results_end_the_command_too(result, end, message):
    async with agent_side() as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID) as run:
            await next_command(agent)
            await answer(agent, **result)
            ended = await run.ended()
        assert (ended.exit_code, ended.reason) == (end.exit_code, end.reason)
        assert message is None or message in ended.message


@pytest.mark.parametrize("content", [None, [], {"commandId": 5}, {"commandId": ""}, {"result": {}}])
async def test_a_result_of_no_command_is_refused(content):
    async with agent_side() as side, side.agent() as agent:
        await agent.emit("command_result", content)
        event = await agent.receive()
        assert event.args == [{"success": False, "error": "commandId must be a text"}]
        assert side.server.connected == [PROXY_ID]


async def test_a_result_without_its_object_ends_the_command():
    async with agent_side() as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID) as run:
            await next_command(agent)
            await agent.emit("command_result", {"commandId": "c1", "result": "fine"})
            assert (await run.ended()).reason == "failed"


async def test_truncated_output_stays_truncated():
    async with agent_side() as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID) as run:
            await next_command(agent)
            text = "abc\n[truncated: stdout was over 3 bytes]\n"
            await answer(agent, stdout=text, truncated=True)
            await run.ended()
            assert Truncated("stdout", 3) in run.events


# -- who may come ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"proxyId": PROXY_ID},
        {"proxyId": PROXY_ID, "apiKey": "wrong"},
        {"proxyId": "nobody", "apiKey": API_KEY},
        {"proxyId": [PROXY_ID], "apiKey": API_KEY},
        {"proxyId": PROXY_ID, "apiKey": "\ud800"},
        {"proxyId": PROXY_ID, "apiKey": {}},
    ],
)
async def test_who_proves_nothing_is_refused(auth):
    async with agent_side() as side:
        url = parse_socketio_url(f"http://127.0.0.1:{side.port}", namespace="/proxy")
        with pytest.raises(ConnectRefused, match="the proxyId is unknown or the apiKey is wrong"):
            async with connect_socketio(url, auth=auth):
                pass
        assert side.server.connected == []


@pytest.mark.parametrize("namespace", ["/proxy", "/"])
async def test_the_key_may_come_in_the_query_and_be_known_by_its_hash(namespace):
    known = SocketIOAgent(proxy_id=PROXY_ID, api_key_sha256=hash_token(API_KEY))
    async with agent_side(known) as side:
        url = parse_socketio_url(f"http://127.0.0.1:{side.port}", namespace=namespace)
        async with connect_socketio(url, query={"proxyId": PROXY_ID, "apiKey": API_KEY}):
            await side.connected(PROXY_ID)


async def test_there_is_no_other_namespace():
    async with agent_side() as side:
        url = parse_socketio_url(f"http://127.0.0.1:{side.port}/admin", namespace="/proxy")
        with pytest.raises(ConnectRefused, match="Invalid namespace"):
            async with connect_socketio(url, auth={"proxyId": PROXY_ID, "apiKey": API_KEY}):
                pass


async def test_an_agent_that_connects_again_takes_the_place_of_its_old_connection():
    async with agent_side() as side, side.agent() as old:
        await side.connected(PROXY_ID)
        async with side.agent() as new:
            with trio.fail_after(20), pytest.raises(SocketOver):
                await old.receive()
            async with running(side, PROXY_ID) as run:
                await next_command(new)
                await answer(new)
                assert (await run.ended()).exit_code == 0


async def test_a_new_configuration_throws_out_whom_it_does_not_know():
    async with agent_side(*OFFICE) as side, side.agent("proxy-1") as one, side.agent("proxy-2"):
        await side.connected("proxy-1", "proxy-2")
        assert side.server.configure(side.server.settings, OFFICE[1:]) == ["proxy-1"]
        with trio.fail_after(20), pytest.raises(SocketOver):
            await one.receive()
        await side.connected("proxy-2")


async def test_changed_address_lists_throw_out_who_may_not_connect_any_more():
    async with agent_side(*OFFICE) as side, side.agent("proxy-1") as one:
        await side.connected("proxy-1")
        settings, others = side.server.settings, ["192.0.2.0/24"]
        assert side.server.configure(settings, OFFICE, AddressLists(deny=others)) == []
        assert side.server.configure(settings, OFFICE, AddressLists(allow=others)) == ["proxy-1"]
        with trio.fail_after(20), pytest.raises(SocketOver):
            await one.receive()


# -- many agents ----------------------------------------------------------------------------


async def test_work_of_a_group_goes_to_the_least_busy():
    async with (
        agent_side(*OFFICE) as side,
        side.agent("proxy-1") as one,
        side.agent("proxy-2") as two,
    ):
        await side.connected("proxy-1", "proxy-2")
        async with (
            running(side, "office", request("c1")) as first,
            running(side, "office", request("c2")) as second,
        ):
            commands = [await next_command(one), await next_command(two)]
            assert {command["commandId"] for command in commands} == {"c1", "c2"}
            await answer(one, commands[0]["commandId"])
            await answer(two, commands[1]["commandId"])
            await first.ended()
            await second.ended()


async def test_what_never_started_moves_when_its_agent_disappears():
    async with (
        agent_side(*OFFICE) as side,
        side.agent("proxy-2", **CONFIRMS) as two,
        side.agent("proxy-1", **CONFIRMS) as one,
    ):
        await side.connected("proxy-1", "proxy-2")
        # Keep the second busy, so that the first is chosen.
        async with running(side, "proxy-2", request("other")):
            await next_command(two)
            async with running(side, "office") as run:
                command = await next_command(one)
                assert command["confirmStart"] is True
                await one.leave()
                moved = await next_command(two)
                assert moved["commandId"] == "c1"
                assert await asked(two) is True
                await answer(two, stdout="once\n")
                assert (await run.ended()).exit_code == 0


async def asked(socket, command_id="c1"):
    """What the proxy answers when the agent asks whether it may begin."""
    async with trio.open_nursery() as nursery:

        async def receive():
            while True:
                await socket.receive()

        nursery.start_soon(receive)
        (may,) = await socket.call("command_started", {"commandId": command_id}, timeout=5)
        nursery.cancel_scope.cancel()
    return may


async def test_what_has_started_is_lost_and_does_not_move():
    limits = limits_with(reconnect_wait=0.1)
    async with agent_side(*OFFICE, limits=limits) as side, side.agent("proxy-2") as two:
        async with side.agent("proxy-1", **CONFIRMS) as one:
            await side.connected("proxy-1", "proxy-2")
            async with running(side, "proxy-2", request("other")):
                await next_command(two)
                async with running(side, "office") as run:
                    await next_command(one)
                    assert await asked(one) is True
                    await one.leave()
                    end = await run.ended()
                    assert end.reason == "lost"
                    assert isinstance(run.events[0], Started)
        with trio.move_on_after(0.1):
            assert (await two.receive()).name != "execute_command"


async def test_an_agent_that_comes_back_brings_its_result():
    async with agent_side() as side, side.agent(**CONFIRMS) as before:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID) as run:
            await next_command(before)
            assert await asked(before) is True
            await before.leave()
            await side.connected()
            async with side.agent(**CONFIRMS) as after:
                await answer(after, stdout="done\n")
                assert (await run.ended()).stdout_bytes == 5


async def test_an_agent_that_was_started_anew_has_lost_its_commands():
    async with agent_side() as side, side.agent(**CONFIRMS) as before:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID) as run:
            await next_command(before)
            assert await asked(before) is True
            await before.leave()
            await side.connected()
            async with side.agent(confirmsStart=True, instance="two"):
                assert (await run.ended()).reason == "lost"


async def test_an_agent_that_does_not_begin_is_passed_over_and_told_so():
    limits = limits_with(socketio_start_timeout=0.1)
    async with (
        agent_side(*OFFICE, limits=limits) as side,
        side.agent("proxy-2") as two,
        side.agent("proxy-1", **CONFIRMS) as one,
    ):
        await side.connected("proxy-1", "proxy-2")
        async with running(side, "proxy-2", request("other")):
            await next_command(two)
            async with running(side, "office") as run:
                await next_command(one)
                assert (await next_command(two))["commandId"] == "c1"
                assert await asked(one) is False
                await answer(two)
                assert (await run.ended()).exit_code == 0


async def test_a_caller_that_leaves_ends_the_command_at_an_agent_of_ours():
    async with agent_side() as side, side.agent(**CONFIRMS) as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID):
            await next_command(agent)
        with trio.fail_after(20):
            event = await agent.receive()
        assert (event.name, event.args) == ("cancel_command", [{"commandId": "c1"}])


async def test_an_agent_has_so_many_commands_at_once_and_no_more():
    limits = limits_with(socketio_max_commands=2)
    async with agent_side(limits=limits) as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID, request("c1")), running(side, PROXY_ID, request("c2")):
            await next_command(agent)
            await next_command(agent)
            _, end = await side.run(PROXY_ID, request("c3"))
            assert end.reason == "busy"


async def test_a_result_is_waited_for_as_long_as_the_limit_says():
    limits = limits_with(socketio_result_grace=0.1)
    async with agent_side(limits=limits) as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        _, end = await side.run(PROXY_ID, request(timeout=50))
        assert end.reason == "lost"
        assert "did not send its result" in end.message
        # What comes after that is received, and changes nothing.
        await answer(agent)
        with trio.fail_after(20):
            while (event := await agent.receive()).name == "execute_command":
                pass
        assert event.args == [{"success": True, "commandId": "c1"}]


async def test_a_command_for_an_agent_that_is_gone_says_so():
    async with agent_side(*OFFICE) as side:
        _, end = await side.run("office", request())
        assert end.reason == "device-offline"


async def test_no_key_and_no_command_reaches_the_log():
    lines = io.StringIO()
    configure_logs("debug", "json", stream=lines)
    async with agent_side() as side, side.agent() as agent:
        await side.connected(PROXY_ID)
        async with running(side, PROXY_ID, request(password="s3cret-pw")) as run:
            await next_command(agent)
            await answer(agent, stdout="s3cret-output")
            await run.ended()
    text = lines.getvalue()
    assert "agent connected" in text
    assert not re.search(f"s3cret|{API_KEY}", text)
