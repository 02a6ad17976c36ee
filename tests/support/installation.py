"""A whole installation for tests of the command line: API, proxy, agents, an SSH server, in a Trio
run of its own beside the tests, which start `tunnelmux` as people do."""

from __future__ import annotations

import contextlib
import gc
import getpass
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio

from support.apis import LiveApi, live_api
from support.daemons import Daemon, DaemonSet
from support.fake_oidc import FakeProvider, fake_provider
from support.origin import Origin, serving
from support.sshd import CONFIGURATION, make_privilege_separation_folder
from support.tenants import Person, person
from support.tree import ROOT
from tunnelmux.config import Secret
from tunnelmux.config.api import OIDCConfig, ProxyEndpointConfig

__all__ = ["COMMAND", "Installation", "running_installation"]

T = TypeVar("T")

SECRET = "the-secret-of-the-internal-api"

PROXY = """
[tunnel]
listen = "127.0.0.1:0"
[internal]
listen = "{internal}"
secret = "{secret}"
[ingress.http]
listen = "127.0.0.1:0"
domain = "localhost"
[registry]
url = "{registry}"
name = "proxy-1"
"""

AGENT = """
[proxy]
url = "ws://{proxy}/tunnel/connect"
token = "{token}"
[device]
name = "{name}"
"""


@dataclass
class Installation:
    """What tests work with. `here` runs something in the installation's own Trio run."""

    api: LiveApi
    owner: Person
    provider: FakeProvider
    proxy: Daemon
    internal: str
    """The URL of the proxy's internal API."""
    folder: Path
    daemons: DaemonSet
    ids: dict[str, str]
    """The devices' ids by their names."""
    tunnel: str
    """Where agents dial."""
    visitors: str
    """Where visitors come in."""
    token: trio.lowlevel.TrioToken
    bytecode: Path
    """Where programs keep what they compile: the daemons' folder, so that it is there already."""
    echo: str
    """The target of services that send back what they get."""
    ssh: str
    """Where the SSH server is."""
    agents: dict[str, Daemon] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)

    def here(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of something that is done where the installation runs."""
        return trio.from_thread.run(work, trio_token=self.token)

    def environment(self, who: Person | None = None, **more: str) -> dict[str, str]:
        """That of a person who is signed in; of nobody in particular, without one."""
        home = self.folder / (f"home-{who.user_id}" if who else "home")
        file = home / ".config" / "tunnelmux" / "login.json"
        if who is not None and not file.exists():
            file.parent.mkdir(parents=True)
            file.touch(mode=0o600)
            file.write_text(json.dumps({"server": self.api.base, "token": who.token}))
        home.mkdir(exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TUNNELMUX_", "XDG_", "SSH_", "PYTHONDONTWRITE"))
            and not name.lower().endswith("_proxy")
        }
        return {
            **kept,
            "HOME": str(home),
            "PYTHONPYCACHEPREFIX": str(self.bytecode),
            "TERM": "xterm",
            **more,
        }

    @property
    def by_api(self) -> dict[str, str]:
        """The environment of the owner, signed in at the API."""
        return self.environment(self.owner)

    @property
    def by_proxy(self) -> dict[str, str]:
        """The environment of an operator with the secret of the proxy's internal API."""
        file = self.folder / "secret"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(SECRET)
        return self.environment(
            TUNNELMUX_API_URL=self.internal, TUNNELMUX_API_SECRET_FILE=str(file)
        )

    def way(self, name: str) -> dict[str, str]:
        """`api` or `proxy`: the environment to reach the fleet by."""
        return self.by_api if name == "api" else self.by_proxy

    def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        send: bytes = b"",
        timeout: float = 50,
    ) -> subprocess.CompletedProcess[bytes]:
        """What `tunnelmux` writes and how it ends."""
        return subprocess.run(
            [*COMMAND, *words],
            env=dict(env or self.by_api),
            input=send,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=self.folder,
        )

    def json(self, *words: str, env: Mapping[str, str] | None = None) -> Any:
        """The same with `--json`, taken apart."""
        done = self.run(*words, "--json", env=env)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    async def add_device(self, name: str, services: Mapping[str, str]) -> None:
        """Add a device in the registry, and start its agent; without services, it has echo."""
        tenant = self.api.running.api.registry.tenant(self.owner.tenant_id, _actor())
        device, token = await tenant.devices.add(name, serial=f"SN-{name}")
        self.ids[name] = device.id
        self.daemons.secrets.add(token.reveal())
        tables = "".join(
            f'[[services]]\nname = "{key}"\ntarget = "{target}"\n'
            for key, target in (services or {"echo": self.echo}).items()
        )
        text = AGENT.format(proxy=self.tunnel, token=token.reveal(), name=name) + tables
        self.configurations[name] = text
        await self.start_agent(name)

    async def start_agent(self, name: str) -> None:
        """Start a device's agent, and wait until it is connected."""
        self.agents[name] = await self.daemons.start("agent", self.configurations[name])
        await self.agents[name].logged("session started")

    async def stop_agent(self, name: str) -> None:
        """End a device's agent, and wait until the proxy knows."""
        seen = len(self.proxy.events)
        self.agents[name].send_signal(signal.SIGTERM)
        await self.agents[name].wait()
        await self.proxy.logged("session ended", since=seen, device=name)

    async def restart_agent(self, name: str) -> None:
        """Both, one after the other."""
        await self.stop_agent(name)
        await self.start_agent(name)


COMMAND = [sys.executable, str(ROOT / "cmd" / "tunnelmux")]


@contextmanager
def running_installation(
    folder: Path, bytecode: Path, debian_program: Callable[[str, str], str]
) -> Iterator[Installation]:
    """An installation with the devices dev1 (services web, ssh, echo) and dev2 (web), for the
    length of the block; dev3 is known and was never there."""
    answers: queue.Queue[Installation | BaseException] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        async with _installation(folder, bytecode, debian_program) as here:
            answers.put(here)
            await trio.to_thread.run_sync(over.wait)

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as exc:
            answers.put(exc)
        gc.collect()  # what is left of it is nothing that later tests should meet

    thread = threading.Thread(target=run, name="installation")
    thread.start()
    try:
        started = answers.get(timeout=120)
        if isinstance(started, BaseException):
            raise started
        yield started
    finally:
        over.set()
        thread.join(60)
    if not answers.empty():
        problem = answers.get()
        assert isinstance(problem, BaseException)
        raise problem


@asynccontextmanager
async def _installation(
    folder: Path, bytecode: Path, debian_program: Callable[[str, str], str]
) -> AsyncIterator[Installation]:
    registry = f"sqlite:///{folder}/registry.db"
    endpoint = ProxyEndpointConfig(secret=Secret(SECRET))
    async with trio.open_nursery() as nursery, fake_provider() as provider:

        @asynccontextmanager
        async def oidc(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=provider.issuer, client_id=provider.client_id, timeout=30)

        daemons = DaemonSet(folder, nursery, bytecode)
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                live_api(folder, oidc, registry_url=registry, proxies=endpoint)
            )
            # An address of loopback that nobody else listens on: the proxy has to know its port.
            internal = f"127.{'.'.join(str(random.randint(1, 254)) for _ in range(3))}:3801"
            text = PROXY.format(internal=internal, secret=SECRET, registry=registry)
            stack.push_async_callback(daemons.finish)
            web = await stack.enter_async_context(serving(Origin().handle))
            echo = await stack.enter_async_context(serving(_echo))
            sshd = await stack.enter_async_context(_ssh_server(folder, debian_program))
            proxy = await daemons.start("proxy", text)
            await proxy.logged("registry read")
            here = Installation(
                api=api,
                owner=await person(api, "ada"),
                provider=provider,
                proxy=proxy,
                internal=f"http://{internal}",
                folder=folder,
                daemons=daemons,
                ids={},
                tunnel=str(await proxy.listening("tunnel.listen")),
                visitors=str(await proxy.listening("ingress.http.listen")),
                token=trio.lowlevel.current_trio_token(),
                bytecode=bytecode,
                echo=f"tcp://{echo}",
                ssh=str(sshd),
            )
            services = {
                "web": f"http://{web}",
                "ssh": f"tcp://{sshd}",
                "echo": here.echo,
                "closed": "tcp://127.0.0.1:1",
            }
            await here.add_device("dev1", services)
            await here.add_device("dev2", {"web": f"http://{web}"})
            tenant = api.running.api.registry.tenant(here.owner.tenant_id, _actor())
            away, _ = await tenant.devices.add("dev3")
            here.ids["dev3"] = away.id
            # The proxy writes down what it saw of devices some seconds late.
            for name in ("dev1", "dev2"):
                while not (  # noqa: ASYNC110  nobody tells
                    await tenant.devices.find(here.ids[name])
                ).state.services:
                    await trio.sleep(0.1)
            yield here
        daemons.check()


def _actor() -> Any:
    from tunnelmux.registry import Actor

    return Actor.program("tests")


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()


@asynccontextmanager
async def _ssh_server(
    folder: Path, debian_program: Callable[[str, str], str]
) -> AsyncIterator[Any]:
    """An sshd for each connection, as inetd starts it: it needs no port of its own."""
    sshd = debian_program("sshd", "openssh-server")
    keygen = debian_program("ssh-keygen", "openssh-client")
    make_privilege_separation_folder()
    for name in ("host_key", "user_key"):
        await trio.run_process(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        )
    configuration = folder / "sshd_config"
    configuration.write_text(CONFIGURATION.format(port=22, folder=folder, more=""))

    async def handle(stream: trio.SocketStream) -> None:
        descriptor = stream.socket.fileno()
        os.set_blocking(descriptor, True)
        await trio.run_process(
            [sshd, "-i", "-e", "-f", str(configuration)],
            stdin=descriptor,
            stdout=descriptor,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        await trio.aclose_forcefully(stream)

    async with serving(handle) as address:
        yield address


def ssh_words(folder: Path) -> list[str]:
    """Options for ssh: nothing of the tester's own configuration, and no questions."""
    settings = [
        f"UserKnownHostsFile={folder}/known_hosts",
        f"IdentityFile={folder}/user_key",
        "StrictHostKeyChecking=accept-new",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "BatchMode=yes",
        "LogLevel=ERROR",
        f"User={getpass.getuser()}",
    ]
    return ["-F", "none", *(word for setting in settings for word in ("-o", setting))]
