"""Agents by Socket.IO at a proxy of several workers: one of these has them, and all reach them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from support.daemons import DaemonSet
from support.socketio_peers import API_KEY, PROXY_ID, sample_agent
from support.visitor import Answer, fetch
from tunnelmux.config import Address, hash_token

SECRET = "the-secret-of-the-internal-api"
PATIENCE = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("npm_peers"),
    pytest.mark.timeout(240, func_only=True),
]


def proxy_file() -> str:
    agents = "".join(
        f"""
[[socketio.agents]]
proxy_id = "{name}"
api_key_sha256 = "{hash_token(API_KEY)}"
group = "{group}"
"""
        for name, group in ((PROXY_ID, "office"), ("proxy-2", "shop"))
    )
    return f"""
[proxy]
workers = 2
worker_timeout = 60
[tunnel]
listen = "127.0.0.1:0"
[internal]
listen = "127.0.0.1:0"
secret = "{SECRET}"
[audit]
file = "audit.jsonl"
[socketio]
listen = "127.0.0.1:0"
allow_eio3 = true
{agents}"""


async def execute(at: Address, device: str, *, accept: str = "application/json") -> Answer:
    """Run a command there, on a connection of its own, which any worker takes."""
    body = {
        "devices": [device],
        "host": "192.0.2.1",
        "username": "root",
        "password": "s3cret-pw",
        "command": "echo hello",
        "askedBy": "anna",
    }
    fields = [
        ("Content-Type", "application/json"),
        ("Accept", accept),
        ("Authorization", f"Bearer {SECRET}"),
    ]
    content = json.dumps(body).encode()
    return await fetch(at, "/internal/exec", method="POST", headers=fields, body=content)


async def polls(at: Address, version: str) -> int:
    """Open a session by polling, and post to it on many connections; how many knew it."""
    path = f"/socket.io/?EIO={version}&transport=polling"
    opened = await fetch(at, path)
    assert opened.status == 200, opened.body
    sid = json.loads(opened.body[opened.body.index(b"{") : opened.body.rindex(b"}") + 1])["sid"]
    noop = b"1:6" if version == "3" else b"6"
    found = [await fetch(at, f"{path}&sid={sid}", method="POST", body=noop) for _ in range(8)]
    return [answer.status for answer in found].count(200)


async def test_any_worker_reaches_them(daemons: DaemonSet, tmp_path: Path) -> None:
    daemons.secrets.update([API_KEY, "s3cret-pw"])
    proxy = await daemons.start("proxy", proxy_file())
    await proxy.logged("workers started")
    at_agents = await proxy.listening("socketio.listen")
    at_internal = await proxy.listening("internal.listen")
    assert [await polls(at_agents, version) for version in ("4", "3")] == [8, 8]

    polling = {"transports": ["polling"], "reconnectionDelay": 50, "reconnectionDelayMax": 200}
    upgraded = {"reconnectionDelay": 50, "reconnectionDelayMax": 200}
    async with (
        sample_agent("node", at_agents.port, options=upgraded) as office,
        sample_agent("node2", at_agents.port, proxy_id="proxy-2", options=polling) as shop,
    ):
        await office.expect("connected")
        await shop.expect("connected")
        there = {
            (await proxy.logged("agent connected", agent=name))["worker"]
            for name in (PROXY_ID, "proxy-2")
        }
        [holder] = there
        for number in range(6):  # on connections of their own, which any worker takes
            device = ("office", "shop", PROXY_ID)[number % 3]
            answer = await execute(at_internal, device)
            assert (answer.status, b"hello\\n" in answer.body) == (200, True), answer.body
            answer = await execute(at_internal, device, accept="application/x-ndjson")
            lines = [json.loads(line) for line in answer.body.splitlines()]
            assert lines[-1] == {"event": "end", "succeeded": 1, "failed": 0}
        # The audit names who asked, and from where, and each command once.
        written = (tmp_path / "audit.jsonl").read_text().splitlines()
        asked = [json.loads(line)["asked_by"] for line in written]
        assert len(asked) == 12
        assert all(one.startswith("anna (127.0.0.1:") for one in asked)

        since = len(proxy.events)
        pid = next(
            line["pid"]
            for line in proxy.events
            if line.get("event") == "worker ready" and line.get("worker") == holder
        )
        os.kill(int(str(pid)), signal.SIGKILL)
        for name in (PROXY_ID, "proxy-2"):
            await proxy.logged("agent connected", since=since, agent=name)
        with trio.fail_after(PATIENCE):
            for device in ("office", "shop"):
                while b"hello\\n" not in (await execute(at_internal, device)).body:  # noqa: ASYNC110
                    await trio.sleep(0.05)
    proxy.send_signal(signal.SIGTERM)
    assert await proxy.wait() == 0
