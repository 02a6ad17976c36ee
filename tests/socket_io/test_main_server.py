"""The agent's connection to a main server, which is npm's socket.io."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.scripted_executor import ScriptedExecutor
from support.socketio_peers import API_KEY, PROXY_ID, main_server
from tunnelmux.agent.main_server import MainServerClient
from tunnelmux.config import (
    AgentConfig,
    AgentLimitsConfig,
    BackoffConfig,
    Device,
    MainServer,
    Secret,
)
from tunnelmux.limits import SocketIOLimits

pytestmark = [pytest.mark.usefixtures("npm_peers"), pytest.mark.timeout(60, func_only=True)]


@asynccontextmanager
async def agent(
    port,
    executor,
    *,
    transports="websocket",
    engine_io=4,
    max_concurrent=4,
    key=API_KEY,
    **limits,
):
    main = MainServer(
        url=f"http://127.0.0.1:{port}",
        proxy_id=PROXY_ID,
        api_key=Secret(key),
        transports=transports,
        engine_io=engine_io,
    )
    config = AgentConfig(
        device=Device(name="dev1"),
        socketio=main,
        backoff=BackoffConfig(minimum=0.02, maximum=0.1),
        limits=AgentLimitsConfig(socketio=dataclasses.replace(SocketIOLimits(), **limits)),
    )
    client = MainServerClient(config, main, executor, max_concurrent=max_concurrent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()


def command(command_id="cmd_1", text="echo hello", **more):
    return {
        "commandId": command_id,
        "serverId": 123,
        "host": "192.168.1.100",
        "port": 22,
        "username": "root",
        "password": "password123",
        "privateKey": None,
        "command": text,
        "timeout": 30000,
    } | more


async def finished(client):
    """Return when every result has been acknowledged."""
    with trio.fail_after(20):
        while client.unacknowledged:  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.fixture
def executor():
    return ScriptedExecutor()


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_a_command_and_its_result(executor, transports):
    async with main_server() as (server, port), agent(port, executor, transports=transports) as own:
        told = await server.expect("connected")
        assert told["proxyId"] == PROXY_ID
        assert told["auth"] | {"instance": ""} == {
            "proxyId": PROXY_ID,
            "apiKey": API_KEY,
            "client": told["auth"]["client"],
            "instance": "",
            "confirmsStart": True,
        }
        await server.do("execute", data=command(timeout=1500))
        assert (await server.expect("result"))["data"] == {
            "commandId": "cmd_1",
            "result": {"stdout": "hello\n", "stderr": "", "exitCode": 0},
        }
        (request,) = executor.requests
        assert request.timeout == 1.5
        assert request.password.reveal() == "password123"
        await finished(own)


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_a_command_and_its_result_at_a_main_server_on_socket_io_2(executor, transports):
    async with (
        main_server(version=2) as (server, port),
        agent(port, executor, transports=transports, engine_io=3) as own,
    ):
        assert (await server.expect("connected"))["proxyId"] == PROXY_ID
        await server.do("execute", data=command(timeout=1500))
        assert (await server.expect("result"))["data"] == {
            "commandId": "cmd_1",
            "result": {"stdout": "hello\n", "stderr": "", "exitCode": 0},
        }
        await finished(own)


async def test_a_result_that_was_not_acknowledged_is_sent_again_and_nothing_runs_twice(executor):
    async with main_server(acknowledges=False) as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command())
        first = await server.expect("result")
        assert own.unacknowledged == ["cmd_1"]
        await server.do("acknowledge", on=True)
        await server.do("cut")
        await server.expect("connected")
        assert (await server.expect("result"))["data"] == first["data"]
        await finished(own)
        assert executor.begun == {"cmd_1": 1}


async def test_a_result_that_comes_while_nobody_is_connected_is_sent_later(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command(text="wait"))
        await executor.wait_begun(1)
        await server.do("cut")
        await server.expect("connected")
        assert server.told() == []
        executor.release()
        assert (await server.expect("result"))["data"]["commandId"] == "cmd_1"
        await finished(own)


async def test_a_main_server_that_is_restarted_is_found_again(executor):
    async with main_server() as (server, port), agent(port, executor, transports="auto") as own:
        await server.expect("connected")
        await server.do("execute", data=command(text="wait"))
        await executor.wait_begun(1)
        server.process.kill()
        await server.process.wait()
        executor.release()
        async with main_server(port=port) as (again, _):
            assert (await again.expect("result"))["data"]["commandId"] == "cmd_1"
            await again.do("execute", data=command("cmd_2"))
            assert (await again.expect("result"))["data"]["commandId"] == "cmd_2"
            await finished(own)
    assert executor.begun == {"cmd_1": 1, "cmd_2": 1}


async def test_a_command_that_is_sent_twice_is_executed_once(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command(text="wait"))
        await server.do("execute", data=command(text="wait"))
        await executor.wait_begun(1)
        executor.release()
        first = await server.expect("result")
        await finished(own)
        await server.do("execute", data=command(text="wait"))
        assert (await server.expect("result"))["data"] == first["data"]
        assert executor.begun == {"cmd_1": 1}


async def test_a_command_whose_result_was_forgotten_is_not_executed_again(executor):
    async with (
        main_server() as (server, port),
        agent(port, executor, socketio_result_memory=4000) as own,
    ):
        await server.expect("connected")
        for number in range(10):
            await server.do("execute", data=command(f"c{number}"))
            await server.expect("result")
            await finished(own)
        await server.do("execute", data=command("c0"))
        result = (await server.expect("result"))["data"]["result"]
        assert "was executed before" in result["stderr"]
        assert executor.begun["c0"] == 1


async def test_results_nobody_acknowledges_end_in_busy(executor):
    async with (
        main_server(acknowledges=False) as (server, port),
        agent(port, executor, socketio_result_memory=4000),
    ):
        await server.expect("connected")
        results = []
        for number in range(10):
            await server.do("execute", data=command(f"c{number}"))
            results.append((await server.expect("result"))["data"]["result"])
        assert results[0]["exitCode"] == 0
        assert "unacknowledged results" in results[-1]["stderr"]
        assert results[-1]["reason"] == "busy"


async def test_what_was_executed_is_remembered_for_as_many_as_the_limit_says(executor):
    async with main_server() as (server, port), agent(port, executor, socketio_remembered=2) as own:
        await server.expect("connected")
        for number in range(5):
            await server.do("execute", data=command(f"c{number}"))
            await server.expect("result")
            await finished(own)
        await server.do("execute", data=command("c0"))
        await server.expect("result")
        assert executor.begun["c0"] == 2
        await server.do("execute", data=command("c4"))
        await server.expect("result")
        assert executor.begun["c4"] == 1


async def test_as_many_commands_run_at_once_as_are_allowed_and_some_wait(executor):
    async with (
        main_server() as (server, port),
        agent(port, executor, max_concurrent=2, socketio_max_queued=3),
    ):
        await server.expect("connected")
        for number in range(6):
            await server.do("execute", data=command(f"c{number}", "wait"))
        refused = (await server.expect("result"))["data"]
        assert refused["commandId"] == "c5"
        assert refused["result"]["reason"] == "busy"
        assert executor.running == 2
        executor.release()
        done = {(await server.expect("result"))["data"]["commandId"] for _ in range(5)}
        assert done == {f"c{number}" for number in range(5)}
        assert executor.most_running == 2


MALFORMED = [
    ({}, "commandId"),
    ({"commandId": 7}, "commandId"),
    (command(host=None), "host"),
    (command(host=["a"]), "host"),
    (command(port="22"), "port"),
    (command(username=""), "username"),
    (command(password=5), "password"),
    (command(privateKey={}), "privateKey"),
    (command(text=""), "command"),
    (command(timeout="30000"), "timeout"),
    (command(timeout=0), "timeout"),
    (command(timeout=-1), "timeout"),
    ("ls", ""),
    (None, ""),
]


async def test_a_malformed_command_is_answered_with_the_field(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        for content, field in MALFORMED:
            await server.do("execute", data=content)
            answer = (await server.expect("result"))["data"]
            result = answer["result"]
            assert result["field"] == field
            assert "malformed execute_command" in result["stderr"]
            assert field in result["stderr"]
            assert result["exitCode"] == 255
            wanted = content.get("commandId") if isinstance(content, dict) else None
            assert answer["commandId"] == (wanted if isinstance(wanted, str) else None)
        await server.do("emit", name="execute_command", args=[])
        assert (await server.expect("result"))["data"]["commandId"] is None
        # None of those receipts is taken for that of the command that comes now.
        await server.do("execute", data=command())
        await server.expect("result")
        await finished(own)
        assert executor.begun == {"cmd_1": 1}


async def test_a_main_server_does_not_fill_the_log_by_what_cannot_be_done(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command())
        await server.expect("result")
        await finished(own)
        with capture_logs() as logs:
            for _ in range(40):
                for content in (command(), "no command"):
                    await server.do("execute", data=content)
                    await server.expect("result")
    count = Counter(line["event"] for line in logs)
    assert count["command asked for again"] == count["malformed command"] == 30
    assert count["lines left out"] == 2


async def test_a_result_that_is_too_large_for_the_server_is_cut_and_says_so(executor):
    async with (
        main_server(maxHttpBufferSize=100_000) as (server, port),
        agent(port, executor) as own,
    ):
        await server.expect("connected")
        await server.do("execute", data=command(text="write 500000"))
        result = (await server.expect("result"))["data"]["result"]
        assert result["truncated"] is True
        assert 90_000 < len(result["stdout"]) < 100_000
        assert result["stdout"].endswith("bytes]\n")
        await finished(own)


async def test_a_command_that_fails_in_the_agent_is_answered(executor):
    async with main_server() as (server, port), agent(port, executor):
        await server.expect("connected")
        await server.do("execute", data=command(text="crash"))
        result = (await server.expect("result"))["data"]["result"]
        assert result["exitCode"] == 255
        assert "the agent failed" in result["stderr"]
        await server.do("execute", data=command("cmd_2", "exit 3"))
        assert (await server.expect("result"))["data"]["result"]["exitCode"] == 3


async def test_a_command_for_which_there_was_no_room_may_be_sent_again(executor):
    async with main_server() as (server, port), agent(port, executor):
        await server.expect("connected")
        await server.do("execute", data=command(text="busy"))
        assert (await server.expect("result"))["data"]["result"]["reason"] == "busy"
        await server.do("execute", data=command(text="echo now"))
        assert (await server.expect("result"))["data"]["result"]["stdout"] == "now\n"


async def test_a_refused_agent_keeps_asking(executor):
    async with main_server() as (server, port), agent(port, executor, key="wrong") as own:
        for _ in range(3):
            await server.expect("refused")
        assert not own.is_connected


async def test_draining_lets_commands_finish_and_refuses_new_ones(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command(text="wait"))
        await executor.wait_begun(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.drain, 5.0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await server.do("execute", data=command("cmd_2"))
            refused = (await server.expect("result"))["data"]
            assert refused["commandId"] == "cmd_2"
            assert "stopping" in refused["result"]["stderr"]
            executor.release()
            assert (await server.expect("result"))["data"]["commandId"] == "cmd_1"
        await server.expect("disconnected")


async def test_draining_has_an_end(executor):
    async with main_server() as (server, port), agent(port, executor) as own:
        await server.expect("connected")
        await server.do("execute", data=command(text="wait"))
        await executor.wait_begun(1)
        await own.drain(0.1)
        await server.expect("disconnected")
        with trio.fail_after(20):
            while executor.running:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_server_that_announces_long_silence_is_refused(executor):
    async with (
        main_server(pingInterval=3_600_000) as (server, port),
        agent(port, executor, socketio_max_silence=60.0) as own,
    ):
        with trio.move_on_after(0.5):
            await own.wait_connected()
        assert not own.is_connected
        assert [told for told in server.told() if told["event"] == "connected"] == []
