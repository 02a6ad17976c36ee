"""The servers of `tunnelmux demo --console`: provider, API, proxy and gateway, on loopback.

All but the gateway run in this process. That one is a process of its own here as everywhere: it has
asyncio for its host.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import msgspec
import trio

from tunnelmux.api.app import run_api
from tunnelmux.api.quickstart import (
    OWNER,
    PROVIDER_PORT,
    development_provider,
    make_state,
    name_owner,
    quickstart_config,
)
from tunnelmux.cli.demo.console_cast import HELPER, Cast
from tunnelmux.cli.demo.ports import HOST, free_port
from tunnelmux.config import (
    Address,
    HttpIngress,
    Ingress,
    InternalListener,
    LogConfig,
    ProxyConfig,
    RegistrySource,
    Secret,
    TunnelListener,
)
from tunnelmux.config.api import ApiConfig, GatewayEndpoint, RecordingsConfig
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import TunnelmuxError
from tunnelmux.gateway.certificates import new_authority_key
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.wire import TUNNEL_PATH

__all__ = ["PREFERRED", "ConsolePorts", "ConsoleStage", "running_console"]

_START = 120.0
# Seconds for the gateway to start: a Python that has to compile all it imports, on a busy machine.

_GATEWAY = (sys.executable, "-c", "from tunnelmux.cli.gateway import main; main()")


@dataclass(frozen=True, slots=True)
class ConsolePorts:
    """Where all of it listens; 0 is a port of the system's choosing."""

    http: int = 0
    tunnel: int = 0
    internal: int = 0
    api: int = 0
    gateway: int = 0
    provider: int = 0


PREFERRED = ConsolePorts(8080, 3800, 3801, 3721, 2222, PROVIDER_PORT)
"""Those in the documentation."""


@dataclass(frozen=True, slots=True)
class ConsoleStage:
    """Where to look, and what a visitor needs to try all of it."""

    url: str
    """The console."""
    http: Address
    """Visitors of the devices' pages come in here."""
    tunnel: Address
    """Agents dial this."""
    gateway: Address
    """People with SSH come in here."""
    provider: str
    """The issuer at which everybody signs in as anybody."""
    shell_key: Secret
    """A private key that the devices' SSH servers take."""
    shell_ports: dict[str, int]
    """The ports of those servers, by device."""
    moved: dict[int, int]
    """Preferred ports that others have, and the ports used instead."""

    def facts(self) -> dict[str, str]:
        """The same for programs."""
        return {
            "url": self.url,
            "http": str(self.http),
            "tunnel": str(self.tunnel),
            "gateway": str(self.gateway),
            "provider": self.provider,
            "owner": OWNER,
            "helper": HELPER,
        }

    def page_url(self, device: str) -> str:
        """Where a browser finds the page of a device."""
        return f"http://web--{device}.localhost:{self.http.port}/"


@asynccontextmanager
async def running_console(
    say: Callable[[str], None], folder: Path, *, preferred: ConsolePorts = PREFERRED
) -> AsyncIterator[ConsoleStage]:
    """All of it for the length of the block, with the devices connected.

    What it keeps is in `folder`, which is empty. `say` is told each step. Raises TunnelmuxError
    when a part does not start.
    """
    ports = ConsolePorts(*(free_port(port) for port in astuple(preferred)))
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        make_state(folder)
        issuer = stack.enter_context(development_provider(ports.provider))
        say(f"a development OpenID provider listens on {issuer}")
        listener = stack.enter_context(socket.create_server((HOST, ports.api)))
        config = quickstart_config(folder, Address(*listener.getsockname()), issuer, LogConfig())
        await name_owner(config)
        proxy = await nursery.start(run_proxy, _proxy_config(config, ports))
        assert proxy.http_address is not None  # its configuration has that ingress
        say(
            f"the proxy listens on {proxy.tunnel_address} for agents, on "
            f"{proxy.http_address} for visitors"
        )
        write_private(folder / "authority.key", new_authority_key().encode("ascii"))
        gateway = await nursery.start(_run_gateway, folder, config, ports.gateway)
        say(f"the SSH gateway listens on {gateway}")
        config = _complete(config, folder, proxy, gateway)
        api = await stack.enter_async_context(run_api(config, listener))
        say(f"the API and its console listen on {config.api.public_url}")
        cast = Cast(nursery, folder, config, api.api.registry, proxy)
        await cast.enter(folder / "authority.key")
        say(f"three devices are connected: {', '.join(cast.names)}")
        yield ConsoleStage(
            url=f"{config.api.public_url}/",
            http=proxy.http_address,
            tunnel=proxy.tunnel_address,
            gateway=gateway,
            provider=issuer,
            shell_key=cast.key,
            shell_ports=cast.shell_ports,
            moved=_moved(preferred, proxy, listener, gateway, issuer),
        )


def _proxy_config(config: ApiConfig, ports: ConsolePorts) -> ProxyConfig:
    return ProxyConfig(
        tunnel=TunnelListener(listen=f"{HOST}:{ports.tunnel}"),
        ingress=Ingress(http=HttpIngress(listen=f"{HOST}:{ports.http}", domain="localhost")),
        internal=InternalListener(
            listen=f"{HOST}:{ports.internal}", secret_file=config.proxies.secret_file
        ),
        registry=RegistrySource(url=config.registry.url, name="demo"),
    )


def _complete(config: ApiConfig, folder: Path, proxy: RunningProxy, gateway: Address) -> ApiConfig:
    """The API's settings, with what is known now that the others listen."""
    return msgspec.structs.replace(
        config,
        gateway=GatewayEndpoint(
            address=str(gateway), host_key_file=folder / "gateway" / "ssh_host_ed25519_key.pub"
        ),
        recordings=RecordingsConfig(folder=folder / "gateway" / "recordings"),
        proxies=msgspec.structs.replace(
            config.proxies, tunnel_urls=[f"ws://{proxy.tunnel_address}{TUNNEL_PATH}"]
        ),
    )


def _moved(
    preferred: ConsolePorts,
    proxy: RunningProxy,
    listener: socket.socket,
    gateway: Address,
    issuer: str,
) -> dict[int, int]:
    assert proxy.http_address is not None
    found = {
        preferred.http: proxy.http_address.port,
        preferred.tunnel: proxy.tunnel_address.port,
        preferred.api: int(listener.getsockname()[1]),
        preferred.gateway: gateway.port,
        preferred.provider: int(issuer.rpartition(":")[2]),
    }
    return {port: got for port, got in found.items() if port and port != got}


async def _run_gateway(
    folder: Path,
    config: ApiConfig,
    port: int,
    *,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The gateway's process until this is cancelled; starts with its address."""
    file = folder / "gateway.toml"
    write_private(file, _gateway_toml(folder, config, port).encode("utf-8"))
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [*_GATEWAY, "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # A Ctrl-C in the terminal is for the demo, which ends this one last.
                start_new_session=True,
                check=False,
            )
        )
        assert process.stderr is not None
        lines = _log_lines(process.stderr)
        with trio.move_on_after(_START):
            task_status.started(await _listening(lines))
        async for _ in lines:
            pass  # what people need to know of it is on the console


async def _listening(lines: AsyncIterator[dict[str, str]]) -> Address:
    """The address that the gateway's log names. Raises TunnelmuxError where it ends before."""
    last: dict[str, str] = {}
    async for last in lines:
        if last["event"] == "gateway listening":
            return Address(HOST, int(last["address"].rpartition(":")[2]))
    raise TunnelmuxError(f"the gateway did not start: {last.get('event', 'it said nothing')}")


async def _log_lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[dict[str, str]]:
    """Each line of a log in JSON; what is none is an event of its own."""
    waiting = b""
    async for data in stream:
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            try:
                yield read_json(line, dict[str, str], strict=False)
            except BadJson:
                yield {"event": line.decode("utf-8", "replace")}


def _gateway_toml(folder: Path, config: ApiConfig, port: int) -> str:
    return f"""
[gateway]
listen = "{HOST}:{port}"
state_dir = {json.dumps(str(folder / "gateway"))}
console_url = "{config.api.public_url}"
[registry]
url = {json.dumps(config.registry.require_url().reveal())}
[access]
authority_file = {json.dumps(str(folder / "authority.key"))}
standing_rights = ["shell", "exec", "sftp", "forward"]
[proxies]
secret_file = {json.dumps(str(config.proxies.secret_file))}
[drain]
grace = 0.0
[log]
format = "json"
"""
