"""What proxy, agent and visitors write to each other: fields, paths and codes, named once each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "ACCESS_COOKIE",
    "ACCESS_COOKIE_PLAIN",
    "ACCESS_FIELD",
    "AGENT_AUTHORITY",
    "ASKED_BY_FIELD",
    "ASSERTION_FIELD",
    "ASSIST_FIELD",
    "ASSIST_PATH",
    "BESIDE_FIELD",
    "CALLER_FIELD",
    "CLOSE_REPLACED",
    "CREDENTIAL_PATH",
    "DEFAULT_SERVICE_FIELD",
    "DEVICE_FIELD",
    "EMAIL_FIELD",
    "EXEC_PATH",
    "GENERATION_FIELD",
    "HOST_KEYS_FIELD",
    "IDENTITY_FIELDS",
    "INSTANCE_FIELD",
    "LEASES_PATH",
    "LEASE_END_PATH",
    "LEASE_FIELD",
    "LOGS_PATH",
    "LONGEST_TIMEOUT",
    "MEASURE_PATH",
    "MEMBER_COOKIE",
    "MEMBER_COOKIE_PLAIN",
    "MOST_HOST_KEYS",
    "MOST_NODES",
    "MOST_SERVICES",
    "MOVE_PATH",
    "NODES_FIELD",
    "NODES_PATH",
    "PROVED",
    "PROVE_FIELD",
    "REASON_FIELD",
    "RELAY_FIELD",
    "REPLACED_FIELD",
    "REQUEST_FIELD",
    "RIVAL_FIELD",
    "ROLES_FIELD",
    "SERIAL_FIELD",
    "SERVICES_FIELD",
    "SERVICE_FIELD",
    "SESSIONS_FIELD",
    "SIGN_IN_COOKIE",
    "SIGN_IN_COOKIE_PLAIN",
    "SILENCE_PATH",
    "TIMEOUTS_FIELD",
    "TOKEN_FIELD",
    "TUNNEL_PATH",
    "USER_FIELD",
    "VISITOR_PATH",
    "AgentNode",
    "list_host_keys",
    "list_nodes",
    "list_relayed",
    "list_timeouts",
    "read_host_keys",
    "read_instance",
    "read_nodes",
    "read_relayed",
    "read_timeouts",
]

TUNNEL_PATH = "/tunnel/connect"
"""Where agents connect, unless proxy.toml says otherwise."""

MEASURE_PATH = "/measure"
"""Behind the path where agents connect: the way to the proxy is measured, and no session begins. A
path of its own, because a proxy that does not know it answers 404; one that did not know a field
would take the handshake for the agent's, and end the session of the agent that runs."""

AGENT_AUTHORITY = b"agent.tunnelmux"
"""The authority of requests for the agent itself. Only the absolute-form counts: a Host field is
the visitor's to write, and visitors are for services."""

EXEC_PATH = "/v1/exec"
"""Where the agent's own API takes commands."""

GENERATION_FIELD = b"Tunnelmux-Generation"
"""From a node of a cluster to another node: which session of the device is meant."""

CALLER_FIELD = b"Tunnelmux-Caller"
"""From a worker to another one: the address of the caller on whose behalf it calls."""

SILENCE_PATH = b"/v1/silence"
"""Where the agent's own API says why the target of a service (`SERVICE_FIELD`) gave no answer: 200
with a sentence, 204 where it knows of no cause.
"""

LOGS_PATH = b"/v1/logs"
"""Where the agent's own API shows the last lines of its log, and follows it."""

MOVE_PATH = b"/v1/move"
"""Where the agent's own API is asked to make its next session before the proxy ends this one: 204
when that is there, 502 when it could not be made."""

NODES_PATH = b"/v1/nodes"
"""Where the agent's own API is told of the nodes of the cluster, when another one has joined: the
body is what NODES_FIELD has."""

CREDENTIAL_PATH = b"/v1/credential"
"""Where the agent's own API takes a new token for its device."""

ASSIST_PATH = b"/v1/assist"
"""Where the agent's own API streams the state of the switch for assistance, one line per change."""

LEASES_PATH = b"/v1/leases"
"""Where the agent's own API takes a lease, and says whether the device agrees."""

LEASE_END_PATH = b"/v1/leases/end"
"""Where the agent's own API takes the end of a lease."""

ASSIST_FIELD = b"Tunnelmux-Assist"
"""From an agent: it takes leases, or may take them once its switch allows it."""

SERIAL_FIELD = b"Tunnelmux-Serial"
"""From an agent: the device's serial number, percent-encoded UTF-8."""

HOST_KEYS_FIELD = b"Tunnelmux-Host-Keys"
"""From an agent: the host keys of the device's SSH server, as `list_host_keys` writes them."""

MOST_HOST_KEYS = 4
"""Host keys of a device: there are three kinds of them."""

_LONGEST_HOST_KEY = 1600
# Characters: an RSA key of 8192 bits has 1400 in base64.


def list_host_keys(keys: Iterable[str]) -> bytes:
    """Host keys as lines `TYPE BASE64`, for HOST_KEYS_FIELD; longer ones are left out."""
    fit = [key for key in keys if len(key) <= _LONGEST_HOST_KEY]
    return ", ".join(fit[:MOST_HOST_KEYS]).encode("ascii")


def read_host_keys(value: str) -> tuple[str, ...]:
    """The keys in HOST_KEYS_FIELD. They are not validated."""
    listed = [key.strip() for key in value.split(",", MOST_HOST_KEYS)[:MOST_HOST_KEYS]]
    return tuple(key for key in listed if key and len(key) <= _LONGEST_HOST_KEY)


LEASE_FIELD = b"Tunnelmux-Lease"
"""In a request to a device, and in a call for a raw forward: the id of the lease it runs under."""

REQUEST_FIELD = b"Tunnelmux-Request"
"""In a call for a raw forward: `METHOD /path` of the one request that goes through it, for those
who watch requests."""

PROVE_FIELD = b"Tunnelmux-Prove"
"""From an agent: it only has its token checked, and wants no session."""

PROVED = "credential-proved"
"""The reason in the answer to that, a 200: from now on this is the device's only token."""

ASKED_BY_FIELD = b"Tunnelmux-Asked-By"
"""In a command for an agent: who asked for it, for the audit there; percent-encoded UTF-8."""

REASON_FIELD = b"Tunnelmux-Reason"
"""In every refusal: its stable code, one of `http.refusal.REASONS`."""

DEVICE_FIELD = b"Tunnelmux-Device"
"""From an agent: the name of its device. From a visitor: the device it wants, where the host does
not name one.
"""

SERVICE_FIELD = b"Tunnelmux-Service"
"""The service a request is for; without it, the device's default service."""

SERVICES_FIELD = b"Tunnelmux-Services"
"""From an agent: the names of its services, with commas between them."""

DEFAULT_SERVICE_FIELD = b"Tunnelmux-Default-Service"
"""From an agent: the name of the service that a request without one gets. A service with a rule of
its own must not be reached by leaving its name out."""

ACCESS_FIELD = b"Tunnelmux-Access"
"""From a program that visits a service: its token for the service."""

USER_FIELD = b"Tunnelmux-User"
EMAIL_FIELD = b"Tunnelmux-Email"
ROLES_FIELD = b"Tunnelmux-Roles"
ASSERTION_FIELD = b"Tunnelmux-Assertion"

IDENTITY_FIELDS = frozenset(
    name.lower() for name in (USER_FIELD, EMAIL_FIELD, ROLES_FIELD, ASSERTION_FIELD)
)
"""The fields that tell a service about its visitor, in lower case. Agents pass them to targets."""

VISITOR_PATH = b"/.well-known/tunnelmux/"
"""Below this path, on a service that requires visitors to sign in, the proxy itself answers."""

ACCESS_COOKIE = b"__Host-tunnelmux-access"
"""The cookie of a visitor who has signed in. Its prefix makes browsers refuse it from another host
and without TLS (RFC 6265bis 4.1.3.2).
"""

ACCESS_COOKIE_PLAIN = b"tunnelmux-dev-access"
"""The same for development: over plain HTTP, from this machine only."""

SIGN_IN_COOKIE = b"__Host-tunnelmux-sign-in"
"""The cookie that binds a sign-in to the browser that began it."""

SIGN_IN_COOKIE_PLAIN = b"tunnelmux-dev-sign-in"
"""The same for development."""

MEMBER_COOKIE = b"__Host-tunnelmux-member"
"""The cookie by which a browser comes back to the same device of a group."""

MEMBER_COOKIE_PLAIN = b"tunnelmux-dev-member"
"""The same over plain HTTP."""

RELAY_FIELD = b"Tunnelmux-Relay"
"""In a request through the tunnel: the proxy could relay the visitor's further requests raw. In the
answer: the name of the service that may be asked for with a CONNECT for that. From an agent that
connects: the names of all such services, as `list_relayed` writes them."""

MOST_SERVICES = 64
"""Services that an agent names in a field of its handshake, and a proxy reads of one: 4 KiB of a
head at the most. The others are asked about by their first requests."""

_DEFAULT = ";default"
# Follows the name of the default service, which gets requests that name none.

_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")


def list_relayed(names: Iterable[str], default: str | None) -> bytes:
    """The services that may be asked for with a CONNECT, for RELAY_FIELD: `web;default, camera`."""
    listed = [name + (_DEFAULT if name == default else "") for name in names]
    return ", ".join(listed[:MOST_SERVICES]).encode("ascii")


def read_relayed(value: str) -> list[tuple[str, bool]]:
    """The names in RELAY_FIELD, and whether each is the default service. The names are not
    validated.
    """
    listed = [name.strip() for name in value.split(",", MOST_SERVICES)[:MOST_SERVICES]]
    return [(name.removesuffix(_DEFAULT), name.endswith(_DEFAULT)) for name in listed]


TIMEOUTS_FIELD = b"Tunnelmux-Response-Timeouts"
"""From an agent: the services that may take longer, or shorter, than others to begin an answer, as
`list_timeouts` writes them."""

LONGEST_TIMEOUT = 3600
"""Seconds that a service may be given, and that a proxy believes of one."""


def list_timeouts(timeouts: Mapping[str, float], default: str | None) -> bytes:
    """Seconds by service, for TIMEOUTS_FIELD: `web=300;default, camera=90.5`."""
    listed = [
        f"{name}={seconds:g}" + (_DEFAULT if name == default else "")
        for name, seconds in timeouts.items()
    ]
    return ", ".join(listed[:MOST_SERVICES]).encode("ascii")


def read_timeouts(value: str) -> dict[str | None, float]:
    """The seconds in TIMEOUTS_FIELD, by service; None is the default service. What cannot be
    read is left out, and no time is longer than LONGEST_TIMEOUT."""
    timeouts: dict[str | None, float] = {}
    for item in value.split(",", MOST_SERVICES)[:MOST_SERVICES]:
        name, _, seconds = item.strip().removesuffix(_DEFAULT).partition("=")
        if _SECONDS.fullmatch(seconds):
            timeouts[name] = min(float(seconds), LONGEST_TIMEOUT)
            if item.strip().endswith(_DEFAULT):
                timeouts[None] = timeouts[name]
    return timeouts


TOKEN_FIELD = b"Tunnelmux-Token"
"""In the 101 to a device that has just joined: its token from now on."""

REPLACED_FIELD = b"Tunnelmux-Replaced"
"""In the 101 to a device that has just joined: it took the place of another one of its name."""

RESERVED_FIELD = b"Tunnelmux-Reserved"
"""Between nodes, with a CONNECT to a device: the stream is no visitor's, and may be one of those
that are kept from visitors."""

INSTANCE_FIELD = b"Tunnelmux-Instance"
"""From an agent: a random name of its process. Two processes that replace each other in turn are
two devices with one credential, and not one that reconnects."""

_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_instance(value: str | None) -> str:
    """The name in INSTANCE_FIELD; empty where there is none, or one that is no name."""
    return value if value is not None and _INSTANCE.fullmatch(value) else ""


SESSIONS_FIELD = b"Tunnelmux-Sessions"
"""From an agent: the number of sessions that it keeps where there are several nodes. Without the
field it is one, and a new session replaces the one before."""

BESIDE_FIELD = b"Tunnelmux-Beside"
"""From an agent: the names of nodes where it has sessions already, with commas between them. This
one is to be on another node."""

NODES_FIELD = b"Tunnelmux-Nodes"
"""In the 101 to an agent that keeps several sessions: nodes of the cluster, as `list_nodes` writes
them. A proxy that is alone sends no such field."""

MOST_NODES = 8
"""Nodes that an agent is told of. Some of a large cluster are enough for a second session, and the
field stays far below what a head may have."""

_NODE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NODE_URL = re.compile(r"wss?://[!-+\--:<-~]{1,255}")
# Visible ASCII without comma and semicolon, which stand between the parts of the field.


class AgentNode(NamedTuple):
    """A node of a cluster, as agents are told of it."""

    name: str
    url: str = ""
    """Where agents reach this node and no other; empty where that is not known."""
    domain: str = ""
    """What fails as a whole with this node, such as a rack or a site; empty where not known."""
    is_here: bool = False
    """Whether it is the node that says so."""


def list_nodes(nodes: Iterable[AgentNode]) -> bytes:
    """Nodes as `a;here, b;url=wss://b.example/tunnel/connect;domain=rack-2`, for NODES_FIELD."""
    listed = [
        node.name
        + (";here" if node.is_here else "")
        + (f";url={node.url}" if node.url else "")
        + (f";domain={node.domain}" if node.domain else "")
        for node in nodes
    ]
    return ", ".join(listed[:MOST_NODES]).encode("ascii")


def read_nodes(value: str) -> list[AgentNode]:
    """The nodes in NODES_FIELD. What cannot be read is left out."""
    nodes = []
    for item in value.split(",", MOST_NODES)[:MOST_NODES]:
        name, *parts = item.strip().split(";")
        said = dict(part.partition("=")[::2] for part in parts)
        url, domain = said.get("url", ""), said.get("domain", "")
        if _NODE.fullmatch(name) and (not url or _NODE_URL.fullmatch(url)):
            domain = domain if _NODE.fullmatch(domain) else ""
            nodes.append(AgentNode(name, url, domain, "here" in said))
    return nodes


RIVAL_FIELD = b"Tunnelmux-Rival"
"""In the 101 to such an agent: the address of the other one."""

CLOSE_REPLACED = 4001
"""The WebSocket close code (RFC 6455 section 7.4.2, private use) for a session that a new
connection of the same device replaces. The close reason is the new connection's address.
"""
