"""The specification's sample agents with us: on npm's socket.io-client, on python-socketio, and on
a Go client of Socket.IO 4."""

from __future__ import annotations

import pytest
import trio

from support.socketio_peers import PROXY_ID, sample_agent
from support.socketio_proxy import agent_side, known_agent, limits_with, request
from tunnelmux.commands import Exited, Output, Started

pytestmark = pytest.mark.timeout(60, func_only=True)

WEBSOCKET = {"transports": ["websocket"]}
POLLING = {"transports": ["polling"]}


@pytest.mark.parametrize("options", [None, POLLING, WEBSOCKET], ids=["upgrade", "polling", "ws"])
async def test_a_command_and_its_result(language, options):
    # The Go client, when it only polls, sends nothing before a poll is answered: by the next ping.
    limits = limits_with(keepalive_interval=0.2)
    async with (
        agent_side(limits=limits) as side,
        sample_agent(language, side.port, options=options) as agent,
    ):
        transport = (await agent.expect("connected"))["transport"]
        if options is None and transport == "polling":
            transport = (await agent.expect("upgraded"))["transport"]
        assert transport == ("polling" if options is POLLING else "websocket")
        await side.connected(PROXY_ID)
        events, end = await side.run(PROXY_ID, request(command="echo grüße; echo no >&2; exit 3"))
        started, *output = events
        assert isinstance(started, Started)
        assert output == [Output("stdout", "grüße\n".encode()), Output("stderr", b"no\n")]
        assert (end.exit_code, end.reason, end.stdout_bytes) == (3, None, 8)
        received = await agent.expect("received")
        assert received["data"] == {"success": True, "commandId": "c1"}


async def test_errors_much_output_and_commands_at_once(language):
    async with agent_side() as side, sample_agent(language, side.port) as agent:
        await agent.expect("connected")
        await side.connected(PROXY_ID)

        result = await side.result(PROXY_ID, request(command="throw"))
        assert result == {"stdout": "", "stderr": "it threw", "exitCode": 1}

        text = "head -c 2000000 /dev/zero | tr '\\0' x"
        result = await side.result(PROXY_ID, request(command=text))
        assert result["stdout"] == "x" * 2_000_000

        ends = {}

        async def run(number):
            command = request(f"c{number}", f"sleep 0.{9 - number}; echo {number}")
            ends[number] = await side.result(PROXY_ID, command)

        async with trio.open_nursery() as nursery:
            for number in range(7, 10):
                nursery.start_soon(run, number)
        assert {number: end["stdout"] for number, end in ends.items()} == {
            number: f"{number}\n" for number in range(7, 10)
        }


async def test_a_wrong_key_is_refused(language):
    async with agent_side() as side:
        async with sample_agent(language, side.port, api_key="wrong") as agent:
            assert (
                "the proxyId is unknown or the apiKey is wrong"
                in (await agent.expect("refused"))["message"]
            )
        assert side.server.connected == []


async def test_an_agent_that_dies_with_a_command_is_reported_as_lost_and_nothing_runs_again(
    language, tmp_path
):
    ran = tmp_path / "ran"
    command = request(command=f"echo run >> {ran}; sleep 20")
    agents = [known_agent("proxy-1", "office"), known_agent("proxy-2", "office")]
    limits = limits_with(reconnect_wait=0.2)
    async with agent_side(*agents, limits=limits) as side:
        async with (
            sample_agent(language, side.port, proxy_id="proxy-1") as first,
            trio.open_nursery() as nursery,
        ):
            await first.expect("connected")
            await side.connected("proxy-1")
            ends: list[Exited] = []

            async def run():
                ends.append((await side.run("office", command))[1])

            nursery.start_soon(run)
            with trio.fail_after(20):
                while not ran.exists():  # noqa: ASYNC110
                    await trio.sleep(0.01)
            async with side.agent("proxy-2"):
                await side.connected("proxy-1", "proxy-2")
                first.process.kill()
                await side.connected("proxy-2")
                with trio.fail_after(20):
                    while not ends:  # noqa: ASYNC110
                        await trio.sleep(0.01)
        (end,) = ends
        assert end.reason == "lost"
        assert "not known" in end.message
        assert ran.read_text() == "run\n"


async def serve(port, over, *, task_status):
    """Be the main server until the scope that it starts with is cancelled."""
    with trio.CancelScope() as scope:
        async with agent_side(port=port) as side:
            task_status.started((side, scope))
            await trio.sleep_forever()
    over.set()


@pytest.mark.slow  # the clients dial again after a second, more or less
async def test_an_agent_connects_again_after_the_server_went(language):
    async with trio.open_nursery() as nursery:
        over = trio.Event()
        side, server = await nursery.start(serve, 0, over)
        async with sample_agent(language, side.port, options=WEBSOCKET) as agent:
            await agent.expect("connected")
            server.cancel()
            await agent.expect("disconnected")
            with trio.fail_after(30):
                await over.wait()
            side, _ = await nursery.start(serve, side.port, trio.Event())
            await agent.expect("connected")
            await side.connected(PROXY_ID)
            result = await side.result(PROXY_ID, request(command="echo again"))
            assert result == {"stdout": "again\n", "stderr": "", "exitCode": 0}
            assert (await agent.expect("received"))["data"]["success"] is True
        nursery.cancel_scope.cancel()
