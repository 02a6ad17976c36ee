"""The queries of plain routes. The OpenAPI description is made from these structs too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tunnelmux.proxy.internal.answers import ApiError

__all__ = [
    "AccessQuery",
    "RequestsQuery",
    "SessionsQuery",
    "TrafficQuery",
    "VisitsQuery",
    "WebSocketQuery",
    "describe_query",
    "read_query",
]


class AccessQuery(msgspec.Struct, frozen=True):
    """Of GET /internal/access."""

    device: Annotated[str, Meta(min_length=1, max_length=128, description="Its label.")]
    user: Annotated[
        str, Meta(min_length=1, max_length=64, description="The id of the person in the registry.")
    ]
    service: Annotated[str, Meta(max_length=64, description="Its name; empty: the default.")] = ""
    role: Annotated[
        str, Meta(max_length=16, description="Their role in the device's tenant; empty: none.")
    ] = ""
    name: Annotated[str, Meta(max_length=400, description="What the answer calls them.")] = ""
    address: Annotated[
        str, Meta(max_length=64, description="Where they come from; empty: from a good address.")
    ] = ""


class SessionsQuery(msgspec.Struct, frozen=True):
    """The query of GET /internal/sessions."""

    device: Annotated[str, Meta(description="Only the sessions of this device.")] = ""
    agents: Annotated[
        bool, Meta(description="With `agentVersion` and `services`, as each agent said.")
    ] = False


class VisitsQuery(msgspec.Struct, frozen=True):
    """The query of GET /internal/visits."""

    device: Annotated[str, Meta(description="Only the visits of this device.")] = ""
    limit: Annotated[
        int,
        # The most is about 3 MB of JSON.
        Meta(ge=1, le=10_000, description="The most visits to show; `total` counts all."),
    ] = 1000


class TrafficQuery(msgspec.Struct, frozen=True):
    """The query of GET /internal/traffic."""

    top: Annotated[int, Meta(ge=1, le=1000, description="The number of devices.")] = 20
    tenant: Annotated[str, Meta(max_length=64, description="Only devices of this tenant.")] = ""


class WebSocketQuery(msgspec.Struct, frozen=True):
    """Of GET /internal/forward/ws, beside the token."""

    path: Annotated[str, Meta(description="Path and query on the device; / when absent.")] = ""


class RequestsQuery(msgspec.Struct, frozen=True):
    """The query of GET /internal/requests."""

    device: Annotated[str, Meta(description="Of this device only.")] = ""
    service: Annotated[str, Meta(description="Of this service only.")] = ""
    status: Annotated[str, Meta(description="`404`, or a class as `5xx`; several with commas.")] = (
        ""
    )
    path: Annotated[
        str,
        Meta(description="A prefix of the path; with `*`, `?` or `[…]` a pattern for all of it."),
    ] = ""


_Query = TypeVar(
    "_Query",
    AccessQuery,
    RequestsQuery,
    SessionsQuery,
    TrafficQuery,
    VisitsQuery,
    WebSocketQuery,
)


def read_query(query: Mapping[str, str], cls: type[_Query]) -> _Query:
    """The query of a request; unknown parameters are ignored. Raises ApiError."""
    try:
        return msgspec.convert(query, cls, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError("INVALID_REQUEST", f"the query cannot be used: {error}") from None


def describe_query(cls: type[msgspec.Struct]) -> list[dict[str, Any]]:
    """The query's parameters for OpenAPI."""
    (schema,) = msgspec.json.schema_components([cls])[1].values()
    parameters = []
    for name, described in schema["properties"].items():
        text = described.pop("description")
        needed = {"required": True} if name in schema.get("required", ()) else {}
        parameters.append(
            {"name": name, "in": "query", **needed, "schema": described, "description": text}
        )
    return parameters
