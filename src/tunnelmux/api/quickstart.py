"""`tunnelmux-api --quickstart`: an API to try out, with a development provider beside it.

The provider accepts every name that is typed in. So both listen on loopback only, and the state
directory is of no value elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from tunnelmux.api.app import RunningApi, serve_api
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config import Address, DrainConfig, InvalidSetting, LogConfig, Secret
from tunnelmux.config.api import (
    ApiConfig,
    ApiListener,
    BrowserSessionConfig,
    OIDCConfig,
    ProxyEndpointConfig,
    RegistryConfig,
)
from tunnelmux.config.private_file import write_private
from tunnelmux.config.rules import is_loopback
from tunnelmux.errors import ConfigError, RegistryRefused
from tunnelmux.registry import DEFAULT_TENANT, Actor, open_registry

__all__ = [
    "OWNER",
    "PROVIDER_PORT",
    "development_provider",
    "make_state",
    "name_owner",
    "quickstart_config",
    "run_quickstart",
]

OWNER = "owner"
"""The subject that owns the installation: what to type at the development provider."""

PROVIDER_PORT = 3720
"""The port of the development provider, on 127.0.0.1: always the same, so that users stay the same
from run to run."""

_SECRET = "internal.secret"  # noqa: S105  the name of its file

Announce = Callable[[str], object]


async def run_quickstart(
    folder: Path,
    listen: Address,
    *,
    announce: Announce,
    log: LogConfig | None = None,
    provider_port: int = PROVIDER_PORT,
    task_status: trio.TaskStatus[RunningApi] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve with its own keys, database and provider until drained; for `nursery.start`.

    Raises ConfigError for an address beyond loopback, and when the folder cannot be used or the
    provider is not installed.
    """
    if not is_loopback(listen.host):
        raise InvalidSetting(
            "--listen",
            f"{listen} can be reached from other machines, and with the development provider "
            "everybody can sign in as anybody: listen on 127.0.0.1, or write an api.toml with a "
            "real provider",
        )
    make_state(folder)
    with development_provider(provider_port) as issuer:
        config = quickstart_config(folder, listen, issuer, log or LogConfig())
        await name_owner(config)
        announce(_greeting(folder, config.api.public_url))
        await serve_api(config, task_status=task_status)


def _greeting(folder: Path, url: str) -> str:
    return (
        "DEVELOPMENT PROVIDER: everybody on this machine can sign in as anybody.\n"
        f'Open {url} and sign in as "{OWNER}".\n'
        "A proxy joins this installation with this in proxy.toml:\n\n"
        f'[registry]\nurl = "{_registry_url(folder)}"\n\n'
        f'[internal]\nlisten = "127.0.0.1:3801"\nsecret_file = "{folder.resolve() / _SECRET}"\n'
    )


def make_state(folder: Path) -> None:
    """Make the folder with keys and secret, if they are not there. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = folder / "session-keys"
        if not keys.exists():
            write_private(keys, new_key_line().encode("ascii"))
        if not (folder / _SECRET).exists():
            write_private(folder / _SECRET, secrets.token_hex(32).encode("ascii"))
    except OSError as exc:
        raise ConfigError(
            f"{folder} cannot be used ({exc.strerror}): name another with --state-dir"
        ) from exc


def quickstart_config(folder: Path, listen: Address, issuer: str, log: LogConfig) -> ApiConfig:
    """The configuration that an api.toml would give, with the files of `make_state`."""
    return ApiConfig(
        api=ApiListener(listen=str(listen), public_url=f"http://{listen}"),
        registry=RegistryConfig(url=Secret(_registry_url(folder))),
        # That provider accepts any secret, but needs one.
        oidc=OIDCConfig(issuer=issuer, client_id="quickstart", client_secret=Secret("any")),
        browser_sessions=BrowserSessionConfig(key_file=folder / "session-keys"),
        proxies=ProxyEndpointConfig(
            secret_file=folder / _SECRET, tunnel_urls=["ws://127.0.0.1:3800/tunnel/connect"]
        ),
        drain=DrainConfig(),
        log=log,
    )


def _registry_url(folder: Path) -> str:
    return f"sqlite:///{folder.resolve()}/registry.db"


async def name_owner(config: ApiConfig) -> None:
    """Make OWNER the owner of the default tenant. Raises RegistryAway or RegistryFailed."""
    async with open_registry(config.registry.require_url()) as registry:
        installation = registry.installation(Actor.program("tunnelmux-api"))
        tenant = await installation.tenants.find_named(DEFAULT_TENANT)
        with contextlib.suppress(RegistryRefused):  # it has an owner since an earlier run
            await installation.users.grant(
                tenant.id, "owner", issuer=config.oidc.issuer, subject=OWNER
            )


@contextlib.contextmanager
def development_provider(port: int) -> Iterator[str]:
    """Run a library's provider in a thread, on this port or for 0 on any; yields its issuer.

    Raises ConfigError when it is not installed, or the port is taken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies cause warnings
            from oidc_provider_mock import run_server_in_thread
    except ImportError:
        raise ConfigError(
            "the development provider is not installed: in a clone of tunnelmux, "
            'pip install ".[quickstart]"'
        ) from None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    _check_free(port)
    with run_server_in_thread(port=port) as server:
        yield f"http://localhost:{server.server_port}"


def _check_free(port: int) -> None:
    """Check the port first: the library would print its own text and end the program. Raises
    ConfigError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise ConfigError(
                f"the development provider cannot listen on 127.0.0.1:{port} ({exc.strerror}): end "
                "the program that does, perhaps another tunnelmux-api --quickstart"
            ) from None
