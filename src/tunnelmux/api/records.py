"""Records of the registry as the API shows them, and the common parts of lists."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from tunnelmux import registry
from tunnelmux.registry.ids import MAX_PAGE

__all__ = [
    "TEXT",
    "After",
    "Computable",
    "Ended",
    "ExactInput",
    "Input",
    "Labels",
    "Limit",
    "Listing",
    "Record",
    "RecordId",
    "listing",
]

T = TypeVar("T")
R = TypeVar("R")


class Record(BaseModel):
    """A record of the registry; `model_validate` makes it from the registry's own."""

    model_config = ConfigDict(from_attributes=True)


class ExactInput(BaseModel):
    """The body of a request. Unknown fields are refused, so that typing errors show; so is a NUL in
    text, which PostgreSQL cannot store. Text stays as it was sent."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        _tell_text(handler.resolve_ref_schema(schema))
        return schema

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: object) -> object:
        if _holds_nul(value):
            raise PydanticCustomError("text_without_nul", "Text must not hold the character NUL")
        return value


class Input(ExactInput):
    """The same, with white space around text removed."""

    model_config = ConfigDict(str_strip_whitespace=True)


def _tell_text(schema: Any) -> None:
    """Give every text in a JSON Schema the pattern that holds for it."""
    match schema:
        case {"enum": _} | {"const": _} | {"pattern": _}:
            return
        case {"type": "string", **_others}:
            schema["pattern"] = TEXT
        case {"minLength": _, **others} | {"maxLength": _, **others} if "type" not in others:
            schema["pattern"] = TEXT  # the names of an object's properties
        case dict():
            for inner in schema.values():
                _tell_text(inner)
        case list():
            for inner in schema:
                _tell_text(inner)


def _holds_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case list():
            return any(map(_holds_nul, value))
        case dict():
            return any(map(_holds_nul, value)) or any(map(_holds_nul, value.values()))
    return False


class Listing(BaseModel, Generic[T]):
    """A part of a list. Send `next` as `after` for more; it is null at the end."""

    items: list[T]
    next: str | None


TEXT = r"^[^\x00]*$"
"""A pattern for texts that are looked up in the registry: PostgreSQL cannot store a NUL in a
text."""


def _check_year(moment: datetime) -> datetime:
    """Refuse years at the ends of what can be computed with: in UTC, or an hour later, they are
    beyond."""
    if not 1970 <= moment.year <= 9000:
        raise ValueError("write a year from 1970 to 9000")
    return moment


Computable = AfterValidator(_check_year)
"""For a time that comes from a caller."""

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="The most items to send.")]
After = Annotated[
    str | None,
    Query(max_length=1024, pattern=TEXT, description="The `next` of the part before this one."),
]
RecordId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Labels = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=63)],
        Annotated[str, Field(max_length=255)],
    ],
    Field(max_length=32),
]


def listing(page: registry.Page[R], show: Callable[[R], T]) -> Listing[T]:
    """A page of records as the API shows it."""
    return Listing(items=[show(item) for item in page.items], next=page.next)


class Ended(BaseModel):
    """How many sessions and visits a change has ended, as the proxies counted."""

    sessions: int
    visits: int
    missing: list[str]
    """Living proxies that have not confirmed the change within 2 s."""

    @classmethod
    async def by(cls, source: registry.Registry, change: int) -> Ended:
        """What the proxies report about this change; waits for them, 2 s at most."""
        effects = await source.changes.effects(change)
        return cls(sessions=effects.sessions, visits=effects.visits, missing=effects.missing)


class Assistance(Record):
    """What a device said last of its switch for remote assistance."""

    mode: Literal["off", "ask", "allow"]
    services: list[str]
    longest: float
    hours: str
    until: datetime | None
    """When assistance goes off by itself that a person at the device has switched on."""


class DeviceState(Record):
    """The state of a device as the proxies last saw it, some seconds late."""

    online: bool
    since: datetime | None
    last_seen: datetime | None
    address: str
    agent_version: str
    services: list[str]
    reason: str
    assist: Assistance | None


class Device(Record):
    """A device."""

    id: str
    name: str
    label: str
    serial: str
    labels: dict[str, str]
    enabled: bool
    quarantine: str
    paired_by: str
    paired_by_name: str
    install_key_id: str | None
    rotation_wanted: bool
    created: datetime
    state: DeviceState


class Credential(Record):
    """A device's token, of which only the SHA-256 is kept."""

    id: str
    state: Literal["active", "new", "ended"]
    created: datetime
    proved: datetime | None
    ended: datetime | None
    end_reason: str


class DeviceSession(Record):
    """One session that a device had, or has."""

    id: str
    proxy_id: str
    started: datetime
    ended: datetime | None
    address: str
    agent_version: str
    reason: str
    bytes_to_device: int
    bytes_from_device: int


class Pairing(Record):
    """A pairing code, or a device that waits for approval."""

    id: str
    kind: Literal["console", "device"]
    state: Literal["open", "approved", "used", "denied", "cancelled", "burnt", "expired"]
    name: str
    serial: str
    labels: dict[str, str]
    address: str
    fingerprint: str
    agent_version: str
    created_by: str
    created: datetime
    expires: datetime
    decided_by: str
    device_id: str | None
    replaces: str | None


class InstallKey(Record):
    """A key by which many devices can be paired."""

    id: str
    name: str
    labels: dict[str, str]
    needs_approval: bool
    serials: list[str]
    max_uses: int
    uses: int
    created_by: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    revoked: datetime | None
