"""Our agent at our own proxy: both ends of the Socket.IO side, and what only the two can do."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from support.scripted_executor import ScriptedExecutor
from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side, known_agent, limits_with, request
from tunnelmux.agent.main_server import MainServerClient
from tunnelmux.commands import Exited
from tunnelmux.config import AgentConfig, BackoffConfig, Device, MainServer, Secret


@asynccontextmanager
async def our_agent(side, executor, name=PROXY_ID, *, transports="auto", max_concurrent=4):
    main = MainServer(
        url=f"http://127.0.0.1:{side.port}",
        proxy_id=name,
        api_key=Secret(API_KEY),
        transports=transports,
    )
    config = AgentConfig(
        device=Device(name="dev1"),
        socketio=main,
        backoff=BackoffConfig(minimum=0.02, maximum=0.1),
    )
    client = MainServerClient(config, main, executor, max_concurrent=max_concurrent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_a_command_and_its_result(transports):
    executor = ScriptedExecutor()
    async with agent_side() as side, our_agent(side, executor, transports=transports):
        await side.connected(PROXY_ID)
        result = await side.result(PROXY_ID, request(command="echo hi"))
        assert result == {"stdout": "hi\n", "stderr": "", "exitCode": 0}


async def test_ten_mebibytes_of_output_come_through():
    executor = ScriptedExecutor()
    async with agent_side() as side, our_agent(side, executor, transports="websocket"):
        await side.connected(PROXY_ID)
        result = await side.result(PROXY_ID, request(command=f"write {10 * 2**20}"))
        assert len(result["stdout"]) == 10 * 2**20
        assert "truncated" not in result


async def test_what_waits_for_its_turn_moves_when_its_agent_disappears_and_runs_once():
    agents = [known_agent("proxy-1", "office"), known_agent("proxy-2", "office")]
    first, second = ScriptedExecutor(), ScriptedExecutor()
    ends: dict[str, Exited] = {}
    limits = limits_with(reconnect_wait=0.3)
    async with agent_side(*agents, limits=limits) as side, trio.open_nursery() as nursery:

        async def run(command_id, text):
            ends[command_id] = (await side.run("office", request(command_id, text)))[1]

        async with our_agent(side, first, "proxy-1", max_concurrent=1):
            await side.connected("proxy-1")
            nursery.start_soon(run, "c1", "wait")
            await first.wait_begun(1)
            nursery.start_soon(run, "c2", "echo moved")
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(partial(_hold_second, nursery, side, second))
            await side.connected("proxy-1", "proxy-2")
        # The first is gone with one command begun and one waiting.
        await second.wait_begun(1)
        with trio.fail_after(30):
            while len(ends) < 2:  # noqa: ASYNC110
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert ends["c2"].exit_code == 0
    assert ends["c1"].reason == "lost"
    assert (first.begun, second.begun) == ({"c1": 1}, {"c2": 1})


async def _hold_second(nursery, side, executor):
    async with our_agent(side, executor, "proxy-2"):
        await trio.sleep_forever()


async def test_a_caller_that_leaves_ends_the_command():
    executor = ScriptedExecutor()
    async with agent_side() as side, our_agent(side, executor):
        await side.connected(PROXY_ID)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.run, PROXY_ID, request(command="wait"))
            await executor.wait_begun(1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            while executor.running:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert executor.cancelled == 1


async def test_both_ends_close_in_order():
    executor = ScriptedExecutor()
    async with agent_side() as side, our_agent(side, executor) as client:
        await side.connected(PROXY_ID)
        with trio.fail_after(20):
            await client.drain(1.0)
            await side.connected()
