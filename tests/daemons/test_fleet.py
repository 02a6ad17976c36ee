"""A fleet with accounts: tunnelmux-api, a proxy and two agents, met by operators and programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trio
import trio_websocket

from support.apis import LiveApi, live_api
from support.daemons import Daemon, DaemonSet
from support.http_rig import Peer
from support.origin import Origin, reply, serving
from support.proxies import free_port
from support.tenants import Person, person
from tunnelmux.config import Secret
from tunnelmux.config.api import ProxyEndpointConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SECRET = "the-secret-of-the-internal-api"

PROXY = """
[tunnel]
listen = "127.0.0.1:{tunnel}"
[internal]
listen = "127.0.0.1:{internal}"
secret = "{secret}"
[ingress.http]
listen = "127.0.0.1:0"
domain = "localhost"
[registry]
url = "{registry}"
name = "proxy-1"
[[access.rules]]
device = "dev1"
let_in = ["public"]
[[access.rules]]
device = "dev2"
let_in = ["public"]
"""


@dataclass
class Fleet:
    api: LiveApi
    owner: Person
    folder: Path
    daemons: DaemonSet
    visitors: str
    """Where visitors come in, as host:port."""

    async def pair(self, name: str, service: str) -> dict[str, str]:
        """Pair a device by a code, as its terminal would, and start its agent: the device's id."""
        token = self.owner.token
        made = await self.api.call("POST", "/api/pairings", token, json={"name": name})
        config = self.folder / f"{name}.toml"
        done = await trio.run_process(
            [
                *[sys.executable, "-c", "from tunnelmux.cli.agent import main; main()"],
                *["pair", made.json()["code"], "--url", self.api.base],
                *["--config", str(config), "--service", service],
            ],
            capture_stderr=True,
            capture_stdout=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        agent = await self.daemons.start(
            "agent", config.read_text().replace(f'"{name}.token"', f'"{self.folder}/{name}.token"')
        )
        await agent.logged("session started")
        devices = (await self.api.call("GET", f"/api/devices?name={name}", token)).json()["items"]
        return dict(devices[0])


@asynccontextmanager
async def fleet(folder: Path, daemons: DaemonSet) -> AsyncIterator[Fleet]:
    registry = f"sqlite:///{folder}/registry.db"
    tunnel = free_port()
    endpoint = ProxyEndpointConfig(
        secret=Secret(SECRET), tunnel_urls=[f"ws://127.0.0.1:{tunnel}/tunnel/connect"]
    )
    async with live_api(folder, registry_url=registry, proxies=endpoint) as api:
        proxy: Daemon = await daemons.start(
            "proxy",
            PROXY.format(tunnel=tunnel, internal=free_port(), secret=SECRET, registry=registry),
        )
        await proxy.logged("registry read")
        visitors = await proxy.listening("ingress.http.listen")
        yield Fleet(api, await person(api, "ada"), folder, daemons, str(visitors))


async def drip(peer: Peer, _head: bytes) -> None:
    """A download without an end."""
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await peer.send(b"x" * 1000)
        await trio.sleep(0.05)


async def echo_body(peer: Peer, head: bytes) -> None:
    """The request's head, as the target saw it."""
    await peer.send(reply(head))


def an_origin() -> Origin:
    origin = Origin()
    origin.pages[b"/drip"] = drip
    origin.pages[b"/head?x=%2F..%2f"] = echo_body
    return origin


async def test_revoking_a_device_ends_its_download_and_not_its_neighbours(
    tmp_path: Path, daemons: DaemonSet
) -> None:
    async with serving(an_origin().handle) as target, fleet(tmp_path, daemons) as here:
        devices = [await here.pair(name, f"web=http://{target}") for name in ("dev1", "dev2")]
        downloads = {name: Download(here, name) for name in ("dev1", "dev2")}
        async with trio.open_nursery() as nursery:
            for one in downloads.values():
                nursery.start_soon(one.run)
            for one in downloads.values():
                with trio.fail_after(30):
                    await one.more()
            path = f"/api/devices/{devices[0]['id']}/revoke"
            answer = (await here.api.call("POST", path, here.owner.token)).json()
            assert answer["ended"] == {"sessions": 1, "visits": 1, "missing": []}
            with trio.fail_after(20):
                await downloads["dev1"].ended.wait()
            await downloads["dev2"].more()
            assert not downloads["dev2"].ended.is_set()
            nursery.cancel_scope.cancel()


class Download:
    """A download without an end from one device."""

    def __init__(self, here: Fleet, name: str) -> None:
        self.ended = trio.Event()
        self._here = here
        self._name = name
        self._came = trio.Event()

    async def more(self) -> None:
        """Return when something came that was not there before."""
        self._came = trio.Event()
        await self._came.wait()

    async def run(self) -> None:
        with contextlib.suppress(httpx2.HTTPError):
            url, host = f"http://{self._here.visitors}/drip", {"host": f"{self._name}.localhost"}
            async with self._here.api.client.stream("GET", url, headers=host) as answer:
                async for _ in answer.aiter_raw():
                    self._came.set()
        self.ended.set()


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def test_what_a_program_holds_open_ends_with_its_token_at_any_copy(
    tmp_path: Path, daemons: DaemonSet
) -> None:
    async with (
        serving(an_origin().handle) as target,
        serving(echo) as tcp,
        fleet(tmp_path, daemons) as here,
        live_api(
            tmp_path,
            registry_url=f"sqlite:///{tmp_path}/registry.db",
            proxies=here.api.running.api.config.proxies,
        ) as second,
    ):
        device = await here.pair("dev1", f"web=http://{target}")
        other = await here.pair("dev2", f"tcp=tcp://{tcp}")
        thief = await person(here.api, "eve", "operator")
        where = here.api.base.removeprefix("http://")
        resource = f"/api/devices/{other['id']}/connect/tcp"
        headers = [("Authorization", f"Bearer {thief.token}")]
        request = (
            f"GET /api/devices/{device['id']}/http/web/drip HTTP/1.1\r\nHost: {where}\r\n"
            f"Authorization: Bearer {thief.token}\r\n\r\n"
        )
        async with (
            await trio.open_tcp_stream("127.0.0.1", here.api.running.port) as download,
            await trio.open_tcp_stream("127.0.0.1", here.api.running.port) as lower,
            trio.open_nursery() as nursery,
        ):
            raw = await trio_websocket.wrap_client_stream(
                nursery, lower, where, resource, extra_headers=headers
            )
            await download.send_all(request.encode())
            with trio.fail_after(30):
                while b"xxx" not in await download.receive_some():
                    pass
            await raw.send_message(b"to and fro")
            assert await raw.get_message() == b"to and fro"

            path = f"/api/members/{thief.user_id}"
            gone = await second.call("DELETE", path, here.owner.token)
            assert gone.status_code == 204, gone.text
            with trio.fail_after(30):
                while await download.receive_some():
                    pass
                with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                    await raw.get_message()
            assert closed.value.reason.code == 1008
            nursery.cancel_scope.cancel()
            for api in (here.api, second):  # at once, at each copy
                assert (await api.call("GET", "/api/devices", thief.token)).status_code == 401


async def test_programs_reach_services_and_run_commands(tmp_path: Path, daemons: DaemonSet) -> None:
    async with (
        serving(an_origin().handle) as target,
        serving(echo) as tcp,
        fleet(tmp_path, daemons) as here,
    ):
        device = await here.pair("dev1", f"web=http://{target}")
        other = await here.pair("dev2", f"tcp=tcp://{tcp}")
        token, base = here.owner.token, f"/api/devices/{device['id']}/http/web"

        hello = await here.api.call("GET", f"{base}/", token)
        assert (hello.status_code, hello.text) == (200, "hello\n")
        assert "sandbox" in hello.headers["content-security-policy"]
        head = (await here.api.call("GET", f"{base}/head?x=%2F..%2f", token)).text.lower()
        assert head.startswith("get /head?x=%2f..%2f ")
        assert token.lower() not in head
        for climb in ("/%2e%2e/x", "/a/%2e%2e/b", "/..%2fx"):
            answer = await here.api.call("GET", base + climb, token)
            assert answer.status_code == 400, climb
        missing = await here.api.call("GET", f"/api/devices/{device['id']}/http/none/", token)
        assert missing.status_code == 404

        url = f"ws://{here.api.base.removeprefix('http://')}/api/devices/{other['id']}/connect/tcp"
        headers = [("Authorization", f"Bearer {token}")]
        async with trio_websocket.open_websocket_url(url, extra_headers=headers) as raw:
            await raw.send_message(b"to and fro")
            assert await raw.get_message() == b"to and fro"
            await raw.send_message(b"")
            assert await raw.get_message() == b""

        tunnels = (await here.api.call("GET", "/api/sessions", token)).json()
        assert [item["device"] for item in tunnels["items"]] == ["dev1", "dev2"]
        assert tunnels["items"][0]["user_id"] == here.owner.user_id

        wanted = {"devices": ["dev*"], "username": "ada", "command": "uptime"}
        result = (await here.api.call("POST", "/api/exec", token, json=wanted)).json()
        assert {item["reason"] for item in result["results"].values()} == {"forbidden"}
        again = await here.api.call("GET", f"/api/exec/{result['commandId']}", token)
        assert again.json() == result

        closed = await here.api.call("POST", f"/api/devices/{device['id']}/session/close", token)
        assert closed.json() == {"closed": 1}
