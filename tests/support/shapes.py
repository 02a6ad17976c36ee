"""The shape of each `--json`: what a command prints has these fields, of these types, all of them
and no others."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from tunnelmux.backend.agent_log import LogLine
from tunnelmux.cli import device_admin, install_keys, opening
from tunnelmux.cli.doctor.findings import Finding
from tunnelmux.cli.fleet.inspecting import InspectedRequest, Inspection
from tunnelmux.cli.fleet.model import Account, Device, DeviceDetails, FleetEvent, SeenRequest

__all__ = ["LINES", "WHOLE", "of_lines", "of_whole"]


class _Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields with a default may be left out."""


class Lease(_Strict):
    id: str
    state: Literal["requested", "waiting", "running", "later", "ended", "expired", "used_up"]
    device_id: str
    services: list[str]
    rights: list[Literal["shell", "exec", "sftp", "forward", "agent", "x11"]]
    holder_name: str
    reason: str
    recorded: bool
    sealed: bool
    ends: datetime
    end_reason: str
    ended_by_name: str


class LeaseEntry(_Strict):
    number: int
    at: datetime
    action: str
    actor_kind: Literal["user", "token", "device", "program"]
    actor_name: str
    actor_id: str
    actor_address: str
    after: dict[str, str | int | float | bool | list[str] | None] | None


class DemoCheck(_Strict):
    name: str
    through: str
    passed: bool
    seen: str
    seconds: float


class Demo(_Strict):
    passed: bool
    running: bool
    checks: list[DemoCheck]
    url: str
    http: str
    tunnel: str
    tcp: str
    device: str


class ConsoleDemo(_Strict):
    passed: bool
    running: bool
    checks: list[DemoCheck]
    url: str
    http: str
    tunnel: str
    gateway: str
    provider: str
    owner: str
    helper: str


class SshUse(_Strict, rename="camel"):
    pooled: int
    kept_for: float
    connection: str | msgspec.UnsetType = msgspec.UNSET
    seconds: float | msgspec.UnsetType = msgspec.UNSET


class Started(_Strict, rename="camel", tag_field="event", tag="started"):
    device: str
    command_id: str
    at: float
    ssh: SshUse | msgspec.UnsetType = msgspec.UNSET


class Stdout(_Strict, tag_field="event", tag="stdout"):
    device: str
    data: str


class Stderr(_Strict, tag_field="event", tag="stderr"):
    device: str
    data: str


class Truncated(_Strict, tag_field="event", tag="truncated"):
    device: str
    stream: Literal["stdout", "stderr"]
    limit: int


class Exit(_Strict, rename="camel", tag_field="event", tag="exit"):
    device: str
    exit_code: int | None
    duration: float
    stdout_bytes: int
    stderr_bytes: int
    reason: str | msgspec.UnsetType = msgspec.UNSET
    message: str | msgspec.UnsetType = msgspec.UNSET
    ssh: SshUse | msgspec.UnsetType = msgspec.UNSET


class AssistVisit(_Strict, rename={"from_far": "from"}):
    service: str
    seconds: float
    from_far: str


class AssistLease(_Strict):
    id: str
    kind: Literal["person", "code"]
    who: str
    reason: str
    services: list[str]
    rights: list[str]
    recorded: bool
    sealed: bool
    state: Literal["running", "asked"]
    answer_within: float | None
    seconds_left: float
    connections: list[AssistVisit]


class Assist(_Strict):
    serial: str
    configured: Literal["off", "ask", "allow"]
    mode: Literal["off", "ask", "allow"]
    switch: Literal["on", "off"] | None
    makes_codes: bool
    seconds_left: float | None
    services: list[str]
    leases: list[AssistLease]


WHOLE: dict[str, Any] = {
    # One document.
    "tunnelmux demo": Demo,
    "tunnelmux demo --console": ConsoleDemo,
    "tunnelmux device host-keys": device_admin.HostKeys,
    "tunnelmux doctor": list[Finding],
    "tunnelmux explain": list[Finding],
    "tunnelmux inspect ls": list[InspectedRequest],
    "tunnelmux inspect replay": InspectedRequest,
    "tunnelmux inspect show": InspectedRequest,
    "tunnelmux inspect start": Inspection,
    "tunnelmux install-key ls": list[install_keys.InstallKey],
    "tunnelmux invite": device_admin._Made,
    "tunnelmux invite ls": list[device_admin.Invitation],
    "tunnelmux lease approve": Lease,
    "tunnelmux lease deny": Lease,
    "tunnelmux lease end": Lease,
    "tunnelmux lease extend": Lease,
    "tunnelmux lease ls": list[Lease],
    "tunnelmux lease request": Lease,
    "tunnelmux ls": list[Device],
    "tunnelmux open": opening._Made,
    "tunnelmux show": DeviceDetails,
    "tunnelmux whoami": Account,
    "tunnelmux-agent assist status": Assist,
}
LINES: dict[str, Any] = {
    # A document in each line.
    "tunnelmux assist report": LeaseEntry,
    "tunnelmux events": FleetEvent,
    "tunnelmux exec": Started | Stdout | Stderr | Truncated | Exit,
    "tunnelmux logs": LogLine,
    "tunnelmux tail": SeenRequest,
    "tunnelmux watch": list[Device],
}


def of_whole(command: str, printed: bytes | str) -> Any:
    """What this command printed with `--json`, which has its shape."""
    return _held(printed, WHOLE[command])


def of_lines(command: str, printed: bytes | str) -> list[Any]:
    """The same of a command that prints a line for each of what it has."""
    return [_held(line, LINES[command]) for line in printed.splitlines()]


def _held(printed: bytes | str, shape: Any) -> Any:
    content = msgspec.json.decode(printed)
    found = msgspec.convert(content, shape, strict=True)
    # Types of the program's own let unknown fields pass, and fill in those that are missing.
    again = msgspec.json.decode(msgspec.json.encode(found))
    assert again == content, f"printed {content}, which is read as {again}"
    return found
