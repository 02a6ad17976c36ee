"""The names of a proxy: in the registry, in a cluster, in summaries of sessions."""

from __future__ import annotations

import socket
import uuid

from tunnelmux.config import Address, ProxyConfig
from tunnelmux.proxy.tunnels.registered import ProxyIdentity

__all__ = ["internal_url", "node_name", "proxy_identity"]

_PROXIES = uuid.UUID("7d0d8d0a-5f0c-7c61-9e0b-3c1d3a6d4b11")
# Namespace for ids made from a proxy's name, the same at each start (RFC 9562 section 5.5).


def proxy_identity(config: ProxyConfig, worker: str = "") -> ProxyIdentity:
    """The proxy's identity in the registry. Each worker is a separate proxy there, because its
    sessions end with it."""
    name = config.registry.name or socket.gethostname()
    if worker:
        name = f"{name}/{worker}"
    url = internal_url(config, config.internal.address.port if config.internal is not None else 0)
    return ProxyIdentity(id=str(uuid.uuid5(_PROXIES, name)), name=name, internal_url=url)


def internal_url(config: ProxyConfig, port: int) -> str:
    """The URL of the internal API; empty without one, and while its port is not known yet."""
    if config.registry.internal_url is not None:
        return config.registry.internal_url
    if config.internal is None or not port:
        return ""
    scheme = "https" if config.internal.tls_certificate else "http"
    return f"{scheme}://{Address(config.internal.address.host, port)}"


def node_name(config: ProxyConfig) -> str:
    """The name of this node in its cluster; empty without a cluster."""
    if config.cluster is not None:
        return config.cluster.node or config.registry.name or socket.gethostname()
    if config.registry.is_there:
        return config.registry.name or socket.gethostname()
    return ""
