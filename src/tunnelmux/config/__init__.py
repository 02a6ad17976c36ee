"""The configuration of both daemons: plain data that is valid once it exists.

`load_proxy_config` and `load_agent_config` read it from file, environment and flags. Every error
is a `ConfigError` of one sentence that names the source, the key and the fix.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tunnelmux.config.agent import (
    AgentConfig,
    AgentMetrics,
    BackoffConfig,
    Device,
    MainServer,
    ProxyEndpoint,
    ServiceConfig,
)
from tunnelmux.config.execution import ExecConfig
from tunnelmux.config.join import JoinInvitation, decode_join, encode_join
from tunnelmux.config.load import Flag, load_agent_config, load_proxy_config
from tunnelmux.config.process import (
    AgentLimitsConfig,
    AuditConfig,
    DrainConfig,
    LimitsConfig,
    LogConfig,
    OtelConfig,
)
from tunnelmux.config.rules import Address, InvalidSetting
from tunnelmux.config.secret import Secret, hash_token

if TYPE_CHECKING:
    from tunnelmux.config.proxy import (
        DeviceConfig,
        HttpIngress,
        Ingress,
        InternalListener,
        ProxyConfig,
        RegistrySource,
        SocketIOAgent,
        SocketIOListener,
        TcpIngress,
        TunnelListener,
    )

__all__ = [
    "Address",
    "AgentConfig",
    "AgentLimitsConfig",
    "AgentMetrics",
    "AuditConfig",
    "BackoffConfig",
    "Device",
    "DeviceConfig",
    "DrainConfig",
    "ExecConfig",
    "Flag",
    "HttpIngress",
    "Ingress",
    "InternalListener",
    "InvalidSetting",
    "JoinInvitation",
    "LimitsConfig",
    "LogConfig",
    "MainServer",
    "OtelConfig",
    "ProxyConfig",
    "ProxyEndpoint",
    "RegistrySource",
    "Secret",
    "ServiceConfig",
    "SocketIOAgent",
    "SocketIOListener",
    "TcpIngress",
    "TunnelListener",
    "decode_join",
    "encode_join",
    "hash_token",
    "load_agent_config",
    "load_proxy_config",
]


def __getattr__(name: str) -> object:
    """Load names that only a proxy uses on first access: an agent does not need those tables."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module("tunnelmux.config.proxy"), name)
    globals()[name] = value
    return value
