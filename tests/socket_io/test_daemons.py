"""The daemons as an operator starts them: our agent with a foreign main server, agents with us."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio

from support.daemons import DaemonSet
from support.socketio_peers import API_KEY, PROXY_ID, main_server, sample_agent
from support.sshd import running_sshd
from support.visitor import fetch
from tunnelmux.config import hash_token

SECRET = "the-secret-of-the-internal-api"

pytestmark = [
    pytest.mark.slow,  # each starts processes
    pytest.mark.usefixtures("npm_peers"),
    pytest.mark.timeout(150, func_only=True),
]


@pytest.fixture
async def daemons(tmp_path, tmp_path_factory) -> AsyncIterator[DaemonSet]:
    """Starts processes; at the end none of them has shown the key or a traceback."""
    async with trio.open_nursery() as nursery:
        started = DaemonSet(tmp_path, nursery, tmp_path_factory.getbasetemp() / "bytecode")
        started.secrets.add(API_KEY)
        try:
            yield started
        finally:
            await started.finish()
    started.check()


def agent_file(url, more=""):
    return f"""
[device]
name = "dev1"
[socketio]
url = "{url}"
proxy_id = "{PROXY_ID}"
api_key = "{API_KEY}"
[backoff]
minimum = 0.05
maximum = 0.2
{more}
"""


def exec_table(hosts):
    return f"""
[exec]
enabled = true
hosts = {json.dumps(hosts)}
users = ["*"]
commands = ["*"]
host_keys = "off"
login_timeout = 60  # an SSH server of a busy machine
"""


async def test_an_agent_without_a_proxy_runs_a_main_servers_commands_over_ssh(
    daemons, debian_program, tmp_path
):
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with running_sshd(folder, debian_program) as sshd, main_server() as (server, port):
        more = exec_table(["127.0.0.1"])
        agent = await daemons.start("agent", agent_file(f"http://127.0.0.1:{port}", more))
        await server.expect("connected")
        command = {
            "commandId": "cmd_1",
            "host": "127.0.0.1",
            "port": sshd.address.port,
            "username": sshd.user,
            "privateKey": (folder / "user_key").read_text(),
            "command": "echo out; echo err >&2; exit 7",
            "timeout": 60_000,
        }
        await server.do("execute", data=command)
        assert (await server.expect("result"))["data"] == {
            "commandId": "cmd_1",
            "result": {"stdout": "out\n", "stderr": "err\n", "exitCode": 7},
        }
        await server.do("execute", data=command | {"commandId": "cmd_2", "host": "192.0.2.1"})
        refused = (await server.expect("result"))["data"]["result"]
        assert (refused["exitCode"], refused["reason"]) == (126, "forbidden")
        agent.send_signal(15)
        assert await agent.wait() == 0
        await server.expect("disconnected")


async def test_an_agent_whose_commands_are_off_says_so(daemons):
    async with main_server() as (server, port):
        await daemons.start("agent", agent_file(f"http://127.0.0.1:{port}"))
        await server.expect("connected")
        command = {"commandId": "c", "host": "h", "username": "u", "command": "ls"}
        await server.do("execute", data=command)
        result = (await server.expect("result"))["data"]["result"]
        assert (result["exitCode"], result["reason"]) == (126, "forbidden")


async def test_a_sample_agent_serves_the_internal_api(daemons):
    configuration = f"""
[tunnel]
listen = "127.0.0.1:0"
[internal]
listen = "127.0.0.1:0"
secret = "{SECRET}"
[socketio]
listen = "127.0.0.1:0"
[[socketio.agents]]
proxy_id = "{PROXY_ID}"
api_key_sha256 = "{hash_token(API_KEY)}"
group = "office"
"""
    proxy = await daemons.start("proxy", configuration)
    at_agents = await proxy.listening("socketio.listen")
    at_internal = await proxy.listening("internal.listen")
    async with sample_agent("node", at_agents.port) as agent:
        await agent.expect("connected")
        await proxy.logged("agent connected", agent=PROXY_ID, group="office")
        body = {
            "devices": ["office"],
            "host": "192.0.2.1",
            "username": "root",
            "password": "s3cret-pw",
            "command": "echo hello",
        }
        daemons.secrets.add("s3cret-pw")
        answer = await fetch(
            at_internal,
            "/internal/exec",
            method="POST",
            headers=[
                ("Content-Type", "application/json"),
                ("Accept", "application/json"),
                ("Authorization", f"Bearer {SECRET}"),
            ],
            body=json.dumps(body).encode(),
        )
        assert answer.status == 200
        assert b"hello\\n" in answer.body
        # A reload without the agent throws it out.
        daemons.write(daemons.file("proxy-1"), configuration.partition("[[socketio")[0])
        proxy.send_signal(1)
        assert (await agent.expect("disconnected"))["reason"] == "io server disconnect"
        await proxy.logged("agent disconnected", agent=PROXY_ID)
    proxy.send_signal(15)
    assert await proxy.wait() == 0
