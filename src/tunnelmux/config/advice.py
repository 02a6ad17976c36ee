"""Warnings about a configuration that is valid: one sentence each."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunnelmux.config.agent import AgentConfig
from tunnelmux.config.rules import is_loopback
from tunnelmux.config.secret import Secret, hash_token
from tunnelmux.config.token_file import exposed_to_others, read_small_file
from tunnelmux.errors import ConfigError

if TYPE_CHECKING:
    from tunnelmux.config.proxy import ProxyConfig

__all__ = ["Warn", "advise_agent", "advise_proxy", "warn_of_exposed"]

Warn = Callable[[str], None]

_SHORT = 20
# Characters. A token that a person made up has fewer; `openssl rand -hex 16` makes 32.

_NEW = "make another with `openssl rand -hex 32`"

# The placeholders of the sample files for a token and for a digest.
_SAMPLES = ("the-token-of-dev1", "the-key-of-proxy-1", "0" * 64)
_SAMPLE_HASHES = frozenset({"0" * 64, "1" * 64, *(hash_token(text) for text in _SAMPLES)})


def advise_proxy(config: ProxyConfig, warn: Warn) -> None:
    """Warn about weak settings in proxy.toml."""
    for device in config.devices:
        who = f"device {device.name}: its token"
        _judge_secret(who, device.token or _secret_in(device.token_file), warn)
        _judge_hash(who, device.token_sha256, warn)
    for agent in config.socketio.agents if config.socketio is not None else []:
        who = f"Socket.IO agent {agent.proxy_id}: its key"
        _judge_secret(who, agent.api_key, warn)
        _judge_hash(who, agent.api_key_sha256, warn)
    internal = config.internal
    if internal is not None:
        _judge_secret("internal.secret", internal.secret or _secret_in(internal.secret_file), warn)
    _warn_of_clear_text(config, warn)


def advise_agent(config: AgentConfig, warn: Warn) -> None:
    """Warn about weak settings in agent.toml."""
    if config.proxy is not None:
        _judge_secret(
            "proxy.token", config.proxy.token or _secret_in(config.proxy.token_file), warn
        )
        host = urlsplit(config.proxy.url).hostname or ""
        if not config.proxy.is_encrypted and _is_public(host):
            warn(
                f"proxy.url: the token and all that passes cross the network in the clear on their "
                f"way to {host}: use wss:// and put TLS on the proxy or in front of it"
            )
    for service in config.services:
        if not service.verify:
            warn(
                f"service {service.name}: the certificate of its target is not checked "
                "(verify = false): anyone on the network path can read and change the traffic"
            )


def warn_of_exposed(files: Iterable[Path | None], warn: Warn) -> None:
    """Warn about files with secrets that other users may read."""
    for file in dict.fromkeys(files):
        if file is not None and exposed_to_others(file):
            warn(f"{file} holds a secret and every user may read it: chmod o-r {file}")


def _warn_of_clear_text(config: ProxyConfig, warn: Warn) -> None:
    tunnel = config.tunnel
    if tunnel.tls_certificate is None and _is_public(tunnel.address.host):
        warn(
            f"tunnel.listen: at {tunnel.listen} agents speak plain ws://, so tokens and all that "
            "passes cross the network in the clear: set tls_certificate and tls_key, or listen on "
            "127.0.0.1 behind a proxy that speaks TLS"
        )
    internal = config.internal
    if internal is None or internal.tls_certificate or is_loopback(internal.address.host):
        return
    warn(
        f"internal.listen: at {internal.listen} the secret and every device's token cross the "
        "network in the clear: set tls_certificate and tls_key"
    )


def _is_public(host: str) -> bool:
    """Whether connections to this host may cross the Internet."""
    if is_loopback(host):
        return False
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True  # a name may resolve to any address
    return address.is_unspecified or not address.is_private


def _secret_in(file: Path | None) -> Secret | None:
    """The content of a token file. Unreadable files have been refused before."""
    if file is None:
        return None
    with contextlib.suppress(ConfigError):
        return Secret(read_small_file("token_file", file).strip())
    return None


def _judge_secret(what: str, secret: Secret | None, warn: Warn) -> None:
    if secret is None:
        return
    text = secret.reveal()
    if text in _SAMPLES:
        warn(f"{what} is that of a sample file, which is public: {_NEW}")
    elif len(text) < _SHORT:
        warn(f"{what} has only {len(text)} characters, so it may be guessed: {_NEW}")


def _judge_hash(what: str, digest: str | None, warn: Warn) -> None:
    if digest in _SAMPLE_HASHES:
        warn(f"{what} is that of a sample file: {_NEW}, and its SHA-256 with sha256sum")
