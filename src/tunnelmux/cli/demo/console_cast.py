"""The devices and people of `tunnelmux demo --console`.

`camera` has a page, an SSH server and commands; `meter` a page and a TCP port; `till` a page, and
an SSH server that is closed except to leases. A person at `till` asks for help, by the command that
people have for it, and Vera asks for a lease. `lamp`, with a page and an SSH server, came
with an install key, and waits in the inbox to be let in.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from tunnelmux.agent import run_agent
from tunnelmux.agent.pairing import Joined, PairingServer
from tunnelmux.cli.demo.origin import serve_echo, serve_page
from tunnelmux.config import AgentConfig, Device, ExecConfig, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConnectError, TunnelmuxError
from tunnelmux.gateway.certificates import Authorities
from tunnelmux.proxy import RunningProxy
from tunnelmux.registry import DEFAULT_TENANT, Actor, LeaseTerms, Registry, Tenant, User
from tunnelmux.ssh.demo_shell import COMMANDS, new_key, serve_demo_shell
from tunnelmux.wire import TUNNEL_PATH

__all__ = ["ACCOUNT", "ASKING", "HELPER", "WAITING", "Cast"]

ACCOUNT = "demo"
"""The account on the devices that have an SSH server."""

HELPER = "vera"
"""The person who asks for a lease: what to type at the development provider to be her."""

ASKING = "till"
"""The device whose people ask for help."""

WAITING = "lamp"
"""The device that is to be let in."""

_CONNECTED = 60.0
# Seconds for a device to connect, on a busy machine.

_AGAIN = 60.0
# Seconds after which a device that was turned away asks again.

_KEY_LIFETIME = 86_400.0

_AGENT = (sys.executable, "-c", "from tunnelmux.cli.agent import main; main()")

_LEASE = timedelta(hours=1)

_ACTOR = "tunnelmux demo"


@dataclass(frozen=True, slots=True)
class _Part:
    """What one device is like."""

    name: str
    site: str
    services: tuple[str, ...]


_PARTS = (
    _Part("camera", "berlin", ("web", "ssh")),
    _Part("meter", "oslo", ("web", "echo")),
    _Part(ASKING, "oslo", ("web", "ssh")),
)


class Cast:
    """The devices that run, and what is needed to visit them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        folder: Path,
        config: ApiConfig,
        registry: Registry,
        proxy: RunningProxy,
    ) -> None:
        self._nursery = nursery
        self._folder = folder
        self._config = config
        self._registry = registry
        self._proxy = proxy
        private, self._public = new_key()
        self.key = Secret(private)
        """A private key that the devices' SSH servers take."""
        self.names = [part.name for part in _PARTS]
        self.shell_ports: dict[str, int] = {}

    async def enter(self, authority: Path) -> None:
        """Return when all devices are connected and the requests wait. Raises TunnelmuxError."""
        installation = self._registry.installation(Actor.program(_ACTOR))
        home = await installation.tenants.find_named(DEFAULT_TENANT)
        trusted = [
            f"cert-authority {Authorities(authority).public_line(home.id, home.name)}",
            self._public,
        ]
        tenant = self._registry.tenant(home.id, Actor.program(_ACTOR))
        ids = {}
        for part in _PARTS:
            device, token = await tenant.devices.add(
                part.name, serial=f"SN-{part.name}", labels={"site": part.site}
            )
            ids[part.name] = device.id
            await self._start(part, token, trusted)
        await self._offer_help(home, ids[ASKING])
        _, key = await tenant.install_keys.add(
            "lamps from the factory", lifetime=_KEY_LIFETIME, max_uses=10, needs_approval=True
        )
        self._nursery.start_soon(self._wait_to_be_let_in, key, trusted)

    async def _start(self, part: _Part, token: Secret, trusted: list[str]) -> None:
        """Run a device's services and its agent; return when it is connected."""
        targets = {}
        for service in part.services:
            if service == "web":
                host, port = (await self._nursery.start(serve_page))[0]
                targets[service] = f"http://{host}:{port}"
            elif service == "echo":
                host, port = (await self._nursery.start(serve_echo))[0]
                targets[service] = f"tcp://{host}:{port}"
            else:
                port = await self._nursery.start(_run_shell, part.name, trusted)
                self.shell_ports[part.name] = port
                targets[service] = f"tcp://127.0.0.1:{port}"
        await self._connect(part.name, token, targets)

    async def _connect(self, name: str, token: Secret, targets: dict[str, str]) -> None:
        url = f"ws://{self._proxy.tunnel_address}{TUNNEL_PATH}"
        config = AgentConfig(
            proxy=ProxyEndpoint(url=url, token=token),
            device=Device(name=name, serial=f"SN-{name}", state_dir=self._folder / name),
            services=[
                ServiceConfig(
                    name=service, target=target, lease_only=(name, service) == (ASKING, "ssh")
                )
                for service, target in targets.items()
            ],
            assist=AssistConfig(mode="ask" if name == ASKING else "off"),
            exec=ExecConfig(
                enabled="ssh" in targets and name != ASKING,
                hosts=["127.0.0.1"],
                users=[ACCOUNT],
                commands=[*COMMANDS],
            ),
        )
        await self._nursery.start(partial(run_agent, config))
        until = trio.current_time() + _CONNECTED
        if await self._proxy.store.wait_for_device(name, until) is None:
            raise TunnelmuxError(
                f'the device "{name}" did not connect within {_CONNECTED:g} s: run it with '
                "--verbose to see why"
            )
        if name == ASKING:
            await _ask_for_help(config, self._folder / name)

    async def _offer_help(self, home: Tenant, device_id: str) -> None:
        """Vera, who may look but not touch, asks for a lease of the till's shell."""
        installation = self._registry.installation(Actor.program(_ACTOR))
        vera = await installation.users.grant(
            home.id, "viewer", issuer=self._config.oidc.issuer, subject=HELPER, force=True
        )
        assert isinstance(vera, User)  # an invitation is what an e-mail gets
        now = datetime.now(UTC)
        terms = LeaseTerms(
            device_id=device_id,
            services=("ssh",),
            holder=vera.id,
            holder_name=HELPER,
            reason="The shop asks for help: no receipts since this morning.",
            starts=now,
            ends=now + _LEASE,
        )
        asking = self._registry.tenant(home.id, Actor(kind="user", id=vera.id, name=HELPER))
        await asking.leases.add(terms, approved=False)

    async def _wait_to_be_let_in(self, key: Secret, trusted: list[str]) -> NoReturn:
        """Ask for a place by an install key, again and again until an operator gives one, and
        connect with it, with a page and an SSH server."""
        server = PairingServer(self._config.api.public_url, environ={})
        host, port = (await self._nursery.start(serve_page))[0]
        while True:
            try:
                answer = await server.install(key.reveal(), name=WAITING, serial=f"SN-{WAITING}")
                joined = answer if isinstance(answer, Joined) else await server.wait(answer)
            except ConnectError:
                await trio.sleep(_AGAIN)
                continue
            shell = await self._nursery.start(_run_shell, WAITING, trusted)
            targets = {"web": f"http://{host}:{port}", "ssh": f"tcp://127.0.0.1:{shell}"}
            await self._connect(joined.label, Secret(joined.token), targets)
            await trio.sleep_forever()


async def _ask_for_help(config: AgentConfig, folder: Path) -> None:
    """What a person at the device does: `tunnelmux-agent assist on`. Raises TunnelmuxError."""
    proxy, state_dir = config.proxy, config.device.state_dir
    assert proxy is not None  # it is connected there
    assert isinstance(proxy.token, Secret)
    file = folder / "agent.toml"
    text = f"""
[proxy]
url = {json.dumps(proxy.url)}
token = {json.dumps(proxy.token.reveal())}
[device]
name = {json.dumps(config.device.name)}
state_dir = {json.dumps(str(state_dir))}
[[services]]
name = "ssh"
target = {json.dumps(config.services[-1].target)}
[assist]
mode = "ask"
"""
    write_private(file, text.encode("utf-8"))
    words = ["assist", "on", "--for", "1h", "--services", "ssh", "--config", str(file)]
    said = f"no answer within {_CONNECTED:g} s"
    with trio.move_on_after(_CONNECTED):
        done = await trio.run_process(
            [*_AGENT, *words], capture_stdout=True, capture_stderr=True, check=False
        )
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip()
    raise TunnelmuxError(f"{config.device.name}: assistance was not switched on: {said}")


async def _run_shell(
    name: str, trusted: list[str], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    async with serve_demo_shell(name, trusted) as port:
        task_status.started(port)
        await trio.sleep_forever()
