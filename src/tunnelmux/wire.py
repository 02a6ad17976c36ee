"""What proxy, agent and visitors write to each other: fields, paths and codes, named once each."""

from __future__ import annotations

__all__ = [
    "AGENT_AUTHORITY",
    "ASKED_BY_FIELD",
    "ASSIST_FIELD",
    "ASSIST_PATH",
    "CLOSE_REPLACED",
    "CREDENTIAL_PATH",
    "DEVICE_FIELD",
    "EXEC_PATH",
    "INSTANCE_FIELD",
    "LEASES_PATH",
    "LEASE_END_PATH",
    "LEASE_FIELD",
    "PROVED",
    "PROVE_FIELD",
    "REASON_FIELD",
    "RELAY_FIELD",
    "REPLACED_FIELD",
    "RIVAL_FIELD",
    "SERIAL_FIELD",
    "SERVICES_FIELD",
    "SERVICE_FIELD",
    "TOKEN_FIELD",
    "TUNNEL_PATH",
]

TUNNEL_PATH = "/tunnel/connect"
"""Where agents connect, unless proxy.toml says otherwise."""

AGENT_AUTHORITY = b"agent.tunnelmux"
"""The authority of requests for the agent itself. Only the absolute-form counts: a Host field is
the visitor's to write, and visitors are for services."""

EXEC_PATH = "/v1/exec"
"""Where the agent's own API takes commands."""

CREDENTIAL_PATH = b"/v1/credential"
"""Where the agent's own API takes another token for its device."""

ASSIST_PATH = b"/v1/assist"
"""Where the agent's own API tells of the switch for assistance, line by line, as long as it is
read."""

LEASES_PATH = b"/v1/leases"
"""Where it takes a lease, and says whether the device agrees."""

LEASE_END_PATH = b"/v1/leases/end"
"""Where it is told that one has ended."""

ASSIST_FIELD = b"Tunnelmux-Assist"
"""From an agent: it takes leases, or may."""

SERIAL_FIELD = b"Tunnelmux-Serial"
"""From an agent: the device's serial number, percent-encoded UTF-8."""

LEASE_FIELD = b"Tunnelmux-Lease"
"""In a request to a device, and in a call for a raw forward: the id of the lease it is under."""

PROVE_FIELD = b"Tunnelmux-Prove"
"""From an agent: it only shows that its token is good, and wants no session."""

PROVED = "credential-proved"
"""The reason in the answer to that, a 200: from now on it is the device's one token."""

ASKED_BY_FIELD = b"Tunnelmux-Asked-By"
"""In a command for an agent: who asked for it, for the audit there; percent-encoded UTF-8."""

REASON_FIELD = b"Tunnelmux-Reason"
"""In every refusal: its stable code, one of `http.refusal.REASONS`."""

DEVICE_FIELD = b"Tunnelmux-Device"
"""From an agent: what it calls itself. From a visitor: the device it wants, if no host says so."""

SERVICE_FIELD = b"Tunnelmux-Service"
"""The service a request is for; without it, the device's default one."""

SERVICES_FIELD = b"Tunnelmux-Services"
"""From an agent: the names of its services, with commas between them."""

RELAY_FIELD = b"Tunnelmux-Relay"
"""In a request through the tunnel: the proxy could relay the visitor's further requests raw. In the
answer: the name of the service that may be asked for with a CONNECT for that."""

TOKEN_FIELD = b"Tunnelmux-Token"
"""In the 101 to a device that has just joined: its token from now on."""

REPLACED_FIELD = b"Tunnelmux-Replaced"
"""In the 101 to a device that has just joined: it took the place of another one of its name."""

INSTANCE_FIELD = b"Tunnelmux-Instance"
"""From an agent: a random name of its process. Two processes that replace each other in turn are
two devices with one credential, and not one that reconnects."""

RIVAL_FIELD = b"Tunnelmux-Rival"
"""In the 101 to such an agent: the address of the other one."""

CLOSE_REPLACED = 4001
"""The WebSocket close code (RFC 6455 section 7.4.2: for private use) for a session in whose place
the same device has connected again. The close reason is the address it connected from."""
