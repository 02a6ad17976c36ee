"""Two proxies of one cluster and two copies of the API, on one PostgreSQL and one Redis, behind
nginx: whichever copy is asked, the answer is the same, and none is missed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from support.apis import LiveApi, live_api
from support.fake_oidc import FakeProvider, fake_provider
from support.front_proxies import running_nginx_before_apis
from support.nodes import Nodes, running_nodes
from support.oidc import Browser
from support.origin import Origin, serving
from support.postgresql import PostgreSQL, run_postgresql
from support.redis_server import RedisServer
from support.registered import agent_at
from support.registries import Templates
from support.tenants import TEST, Person, person
from tunnelmux.config import (
    AgentConfig,
    Device,
    InternalListener,
    ProxyEndpoint,
    RegistrySource,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.api import OIDCConfig, ProxyEndpointConfig

pytestmark = pytest.mark.slow

SECRET = "the-secret-of-the-internal-apis"

PATIENCE = 60.0

Program = Callable[[str, str], str]


@dataclass
class Stage:
    """All that runs. `copies` are the two of the API, `front` is nginx before them."""

    nodes: Nodes
    copies: list[LiveApi]
    front: str
    client: httpx2.AsyncClient
    owner: Person
    provider: FakeProvider
    web: str
    kill_first_copy: Callable[[], Awaitable[None]]

    @asynccontextmanager
    async def device(self, name: str, node: str) -> AsyncIterator[str]:
        """A device that is connected to this node; its id."""
        api = self.copies[0]
        answer = await api.call("POST", "/api/devices", self.owner.token, json={"name": name})
        added = answer.json()
        config = AgentConfig(
            device=Device(name=name),
            proxy=ProxyEndpoint(
                url=f"ws://{self.nodes[node].tunnel_address}/tunnel/connect",
                token=Secret(added["token"]),
            ),
            services=[ServiceConfig(name="web", target=self.web)],
        )
        async with agent_at(config):
            yield added["device"]["id"]

    async def until(self, what: Callable[[], Awaitable[bool]]) -> None:
        with trio.fail_after(PATIENCE):
            while not await what():  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.05)

    async def ask(self, path: str, token: str = "", **options: Any) -> list[httpx2.Response]:
        """What each copy answers."""
        return [await api.call("GET", path, token, **options) for api in self.copies]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with run_postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture
async def stage(
    tmp_path: Path,
    redis: RedisServer,
    postgresql: PostgreSQL,
    templates: Templates,
    debian_program: Program,
) -> AsyncIterator[Stage]:
    url = templates.postgresql(postgresql)
    async with (
        fake_provider() as provider,
        serving(Origin().handle) as web,
        running_nodes(redis, ()) as nodes,
        running_nginx_before_apis(tmp_path, debian_program) as front,
        trio.open_nursery() as nursery,
    ):

        @asynccontextmanager
        async def oidc(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=provider.issuer, client_id=provider.client_id, timeout=20)

        for name in ("a", "b"):
            await nodes.start(
                name,
                devices=[],
                registry=RegistrySource(url=Secret(url), name=name, migrate=False),
                internal=InternalListener(listen=own_address(), secret=Secret(SECRET)),
            )
        killed = trio.CancelScope()
        gone = trio.Event()

        async def run_copy(
            scope: trio.CancelScope,
            task_status: trio.TaskStatus[LiveApi] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            with scope:
                async with live_api(
                    tmp_path,
                    oidc,
                    registry_url=url,
                    public_url=front.url,
                    trusted_proxies=["127.0.0.1"],
                    proxies=ProxyEndpointConfig(secret=Secret(SECRET)),
                ) as api:
                    task_status.started(api)
                    await trio.sleep_forever()
            gone.set()

        async def kill_first_copy() -> None:
            killed.cancel()
            await gone.wait()

        copies = [await nursery.start(run_copy, scope) for scope in (killed, trio.CancelScope())]
        await front.start([api.running.port for api in copies])
        client = httpx2.AsyncClient(
            verify=front.context, trust_env=False, timeout=60, follow_redirects=False
        )
        owner = await person(copies[0], "ada")
        async with client:
            yield Stage(
                nodes, copies, front.url, client, owner, provider, f"http://{web}", kill_first_copy
            )
        nursery.cancel_scope.cancel()


def own_address() -> str:
    """An address of loopback that nothing else listens on: the proxy has to know its port."""
    return f"127.{'.'.join(str(random.randint(1, 254)) for _ in range(3))}:3801"


async def test_who_signs_in_at_one_copy_is_signed_in_at_both(stage: Stage) -> None:
    """The sign-in begins at one copy and ends at the other, and so does the session."""
    first, second = (api.base for api in stage.copies)
    jar: dict[str, str] = {}
    browser = Browser(stage.client)
    for base in (first, second, stage.front):
        browser.cookies[base.partition("://")[2]] = jar  # one browser, whatever copy it meets
    stage.provider.claims.update(sub="bob", email="bob@example.com", email_verified=True)
    page = await browser.request("GET", f"{first}/api/auth/login", stop_at=stage.provider.issuer)
    assert isinstance(page, str)
    back = f"{second}/api/auth/callback?{stage.provider.callback_for(page)}"
    await browser.request("GET", back, stop_at=stage.front)
    for base in (first, second, stage.front):
        me = await browser.get(f"{base}/api/auth/me")
        assert me.json()["email"] == "bob@example.com"
    signed_out = await browser.post(f"{second}/api/auth/logout")
    assert signed_out.is_success
    jar.setdefault("__Host-tunnelmux", "")
    assert (await browser.get(f"{first}/api/auth/me")).status_code == 401


async def test_each_copy_reaches_devices_of_each_proxy(stage: Stage) -> None:
    token = stage.owner.token
    async with stage.device("cam1", "a") as one, stage.device("cam2", "b") as two:

        async def are_online() -> bool:
            answers = await stage.ask("/api/devices", token)
            return all(
                {x["name"] for x in answer.json()["items"] if x["state"]["services"]}
                == {"cam1", "cam2"}
                for answer in answers
            )

        await stage.until(are_online)
        for device in (one, two):
            for answer in await stage.ask(f"/api/devices/{device}/http/web/", token):
                assert answer.status_code == 200
        # What one copy changes holds at the proxy that has the device, and at the other copy.
        revoked = await stage.copies[1].call("POST", f"/api/devices/{one}/revoke", token)
        assert revoked.json()["ended"]["sessions"] == 1
        assert not await stage.nodes["a"].store.list()


async def test_no_request_fails_when_a_copy_dies(stage: Stage) -> None:
    """Callers are spread over both copies; those of the dead one are answered by the other."""
    tenant = stage.copies[0].running.api.registry.tenant(stage.owner.tenant_id, TEST)
    tokens = []
    for number in range(8):
        _, token = await tenant.access_tokens.add(
            f"program {number}",
            user_id=stage.owner.user_id,
            role="viewer",
            scopes=("devices:read",),
        )
        tokens.append(token.reveal())

    async def ask_all() -> set[int]:
        answers = [
            await stage.client.get(
                f"{stage.front}/api/devices", headers={"authorization": f"Bearer {token}"}
            )
            for token in tokens
        ]
        return {answer.status_code for answer in answers}

    assert await ask_all() == {200}
    await stage.kill_first_copy()
    assert await ask_all() == {200}
