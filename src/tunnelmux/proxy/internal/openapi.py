"""The OpenAPI description of the internal API, made from the table of routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

import tunnelmux
from tunnelmux.proxy.internal.answers import CODES, Error
from tunnelmux.proxy.internal.bodies import (
    Closed,
    ExecAnswer,
    ExecRequest,
    Session,
    SessionList,
    Status,
    VisitList,
)
from tunnelmux.proxy.internal.forward_http import ForwardHTTPRequest, ForwardHTTPResponse
from tunnelmux.proxy.internal.inspections import (
    InspectionDetails,
    InspectionList,
    InspectionRequest,
)
from tunnelmux.proxy.internal.queries import (
    AccessQuery,
    RequestsQuery,
    SessionsQuery,
    TrafficQuery,
    VisitsQuery,
    WebSocketQuery,
    describe_query,
)
from tunnelmux.proxy.internal.routes import TOKEN_FIELD, Route
from tunnelmux.sessions import RequestSeen
from tunnelmux.sessions.decisions import DecidingRule, Decision
from tunnelmux.sessions.inspections import InspectedRequest, Inspection
from tunnelmux.sessions.traffic import TrafficList
from tunnelmux.wire import LEASE_FIELD, REQUEST_FIELD

__all__ = ["describe"]

_TEXT = {"type": "string"}
_SCHEMAS: dict[str, Any] = msgspec.json.schema_components(
    [
        Error,
        ExecRequest,
        ForwardHTTPRequest,
        ForwardHTTPResponse,
        ExecAnswer,
        Session,
        SessionList,
        TrafficList,
        VisitList,
        RequestSeen,
        Decision,
        DecidingRule,
        Inspection,
        InspectionRequest,
        InspectionList,
        InspectionDetails,
        InspectedRequest,
        Closed,
        Status,
    ],
    ref_template="#/components/schemas/{name}",
)[1]
"""The schemas of the structs that the handlers decode and encode."""

_SCHEMAS["ExecRequest"]["dependentRequired"] = {"certificate": ["privateKey"]}
# An alternative of two fields, which a struct cannot express.

_SCHEMAS["ForwardHTTPRequest"]["required"] = ["session_token"]
# The token may also be in a field or the query, which a body's schema cannot express.


def _content(kind: str, schema: object) -> dict[str, object]:
    return {"content": {kind: {"schema": schema}}}


def _json(name: str, text: str) -> dict[str, object]:
    return {
        "description": text,
        **_content("application/json", {"$ref": f"#/components/schemas/{name}"}),
    }


def _errors(*codes: str) -> dict[str, object]:
    """Responses for these codes and for those common to all routes."""
    by_status: dict[str, list[str]] = {}
    anywhere = (
        "FORBIDDEN",
        "HEAD_TIMEOUT",
        "HEAD_TOO_LARGE",
        "INTERNAL_ERROR",
        "INVALID_REQUEST",
        "METHOD_NOT_ALLOWED",
        "NOT_FOUND",
        "TOO_MANY_CALLERS",
        "UNAUTHORIZED",
    )
    for code in sorted({*codes, *anywhere}):
        by_status.setdefault(str(CODES[code][0]), []).append(code)
    return {
        status: _json("Error", "; ".join(f"{code}: {CODES[code][1]}" for code in found))
        for status, found in by_status.items()
    }


_TUNNEL = (
    "MISSING_SESSION_TOKEN",
    "TIMEOUT",
    "TOO_MANY_FORWARDS",
    "TUNNEL_DISCONNECTED",
    "TUNNEL_ERROR",
)
_BYTES = {"type": "string", "format": "binary"}
_QUERY_TOKEN = {
    "name": "token",
    "in": "query",
    "schema": _TEXT,
    "description": f"The session's token; the field {TOKEN_FIELD} can be used in its place.",
}

_LEASE = {
    "name": LEASE_FIELD.decode("ascii"),
    "in": "header",
    "schema": _TEXT,
    "description": "The id of a lease; the stream ends with it.",
}

_REQUEST = {
    "name": REQUEST_FIELD.decode("ascii"),
    "in": "header",
    "schema": _TEXT,
    "description": "`METHOD /path` of the one request that goes through it, for those who watch "
    "requests: they see it with the way `api`.",
}

_DETAILS: dict[str, dict[str, Any]] = {
    "/internal/forward/http": {
        "summary": "Forward one request whose bodies fit into memory",
        "requestBody": {
            "required": True,
            **_content("application/json", {"$ref": "#/components/schemas/ForwardHTTPRequest"}),
        },
        "responses": {
            "200": _json("ForwardHTTPResponse", "The device's response, whatever its status."),
            **_errors(
                *_TUNNEL,
                "BODY_TOO_LARGE",
                "INVALID_BODY",
                "INVALID_JSON",
                "RESPONSE_TOO_LARGE",
                "TUNNEL_READ_ERROR",
                "TUNNEL_WRITE_ERROR",
            ),
        },
    },
    "/internal/forward/raw": {
        "summary": "Turn the connection into a stream to the agent",
        "parameters": [_QUERY_TOKEN, _LEASE, _REQUEST],
        "responses": {
            "101": {"description": "When an Upgrade was offered: raw bytes both ways from here."},
            "200": {
                "description": "Raw bytes both ways from here, until the connection's end.",
                **_content("application/octet-stream", _BYTES),
            },
            **_errors(*_TUNNEL, "INVALID_REQUEST", "LEASE_OVER"),
        },
    },
    "/internal/forward/ws": {
        "summary": "A WebSocket to the device",
        "parameters": [
            _QUERY_TOKEN,
            _LEASE,
            *describe_query(WebSocketQuery),
        ],
        "responses": {
            "101": {"description": "The WebSocket is open, end to end."},
            "default": {"description": "The device's answer where it did not switch protocols."},
            **_errors(*_TUNNEL, "LEASE_OVER", "UPGRADE_REQUIRED", "TUNNEL_READ_ERROR"),
        },
    },
    "/internal/exec": {
        "summary": "Run a command over SSH on one device or many",
        "requestBody": {
            "required": True,
            **_content("application/json", {"$ref": "#/components/schemas/ExecRequest"}),
        },
        "responses": {
            "200": {
                "description": "Events, one JSON object per line, as they happen; or, with "
                "`Accept: application/json`, every result when the last is there.",
                "content": {
                    "application/x-ndjson": {"schema": _TEXT},
                    "application/json": {"schema": {"$ref": "#/components/schemas/ExecAnswer"}},
                },
            },
            **_errors("BODY_TOO_LARGE", "INVALID_COMMAND", "INVALID_JSON", "UNKNOWN_DEVICE"),
        },
    },
    "/internal/session/{token}": {
        "summary": "One session",
        "responses": {"200": _json("Session", "It is connected."), **_errors()},
    },
    "/internal/session/{token}/close": {
        "summary": "End a session",
        "responses": {"200": _json("Closed", "It has ended."), **_errors()},
    },
    "/internal/sessions": {
        "summary": "Every session",
        "parameters": describe_query(SessionsQuery),
        "responses": {"200": _json("SessionList", "Sorted by device."), **_errors()},
    },
    "/internal/visits": {
        "summary": "All live visits, oldest first",
        "parameters": describe_query(VisitsQuery),
        "responses": {"200": _json("VisitList", "The live visits."), **_errors("INVALID_REQUEST")},
    },
    "/internal/access": {
        "summary": "Whether a person may reach a service now, and by which rule",
        "parameters": describe_query(AccessQuery),
        "responses": {
            "200": _json("Decision", "What the gate of visitors would do."),
            **_errors("INVALID_REQUEST"),
        },
    },
    "/internal/traffic": {
        "summary": "The devices with the most traffic since they connected, and the others' sum",
        "parameters": describe_query(TrafficQuery),
        "responses": {
            "200": _json("TrafficList", "Sorted by bytes, descending."),
            **_errors("INVALID_REQUEST"),
        },
    },
    "/internal/visits/{id}/close": {
        "summary": "End a visit",
        "responses": {"200": _json("Closed", "It is being cut."), **_errors()},
    },
    "/internal/events": {
        "summary": "Session events as they happen: connected, replaced, lost",
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "schema": _TEXT,
                "description": "Send what came after this event first.",
            }
        ],
        "responses": {
            "200": {
                "description": "Events connected, replaced, lost; gap when some are missing.",
                **_content("text/event-stream", _TEXT),
            },
            **_errors(),
        },
    },
    "/internal/requests": {
        "summary": "Requests of visitors, each when it has ended",
        "parameters": describe_query(RequestsQuery),
        "responses": {
            "200": {
                "description": "Events request (RequestSeen); dropped, with the `count` of those "
                "that the reader was too slow for.",
                **_content("text/event-stream", _TEXT),
            },
            **_errors("INVALID_REQUEST", "TOO_MANY_READERS"),
        },
    },
    "POST /internal/inspections": {
        "summary": "Inspect the requests to a service for a time",
        "requestBody": {
            "required": True,
            **_content("application/json", {"$ref": "#/components/schemas/InspectionRequest"}),
        },
        "responses": {
            "200": _json("Inspection", "It has begun; one that ran for the service has ended."),
            **_errors("BODY_TOO_LARGE", "INVALID_JSON", "TOO_MANY_INSPECTIONS"),
        },
    },
    "GET /internal/inspections": {
        "summary": "The running inspections",
        "responses": {"200": _json("InspectionList", "The oldest first."), **_errors()},
    },
    "/internal/inspections/{id}": {
        "summary": "One inspection, and its requests without bodies",
        "responses": {"200": _json("InspectionDetails", "The newest first."), **_errors()},
    },
    "/internal/inspections/{id}/close": {
        "summary": "End an inspection, and drop its requests",
        "responses": {"200": _json("Closed", "It has ended."), **_errors()},
    },
    "/internal/inspections/{id}/requests/{request}": {
        "summary": "One request, with the bodies that were kept",
        "responses": {"200": _json("InspectedRequest", "As it is now."), **_errors()},
    },
    "/internal/inspections/{id}/requests/{request}/replay": {
        "summary": "Send a request once more through the tunnel, without its secrets",
        "responses": {
            "200": _json("InspectedRequest", "The repetition, which is kept too."),
            **_errors(*_TUNNEL, "RESPONSE_TOO_LARGE", "TUNNEL_READ_ERROR", "TUNNEL_WRITE_ERROR"),
        },
    },
    "/healthz": {
        "summary": "Whether the process answers",
        "responses": {"200": _json("Status", "It does."), **_errors()},
    },
    "/readyz": {
        "summary": "Whether the proxy accepts new work",
        "responses": {"200": _json("Status", "Yes."), **_errors("DRAINING")},
    },
    "/metrics": {
        "summary": "Metrics for Prometheus",
        "responses": {
            "200": {"description": "In its text format.", **_content("text/plain", _TEXT)},
            **_errors(),
        },
    },
    "/openapi.json": {
        "summary": "This description",
        "responses": {
            "200": {
                "description": "OpenAPI 3.1.",
                **_content("application/json", {"type": "object"}),
            },
            **_errors(),
        },
    },
}


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI document for these routes. Each route must have an entry above."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        details = dict(_DETAILS.get(f"{route.method} {route.path}") or _DETAILS[route.path])
        details["operationId"] = _operation_id(route)
        names = [part.strip("{}") for part in route.path.split("/") if part.startswith("{")]
        if names:
            details["parameters"] = [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1},
                }
                for name in names
            ]
        paths.setdefault(route.path, {})[route.method.lower()] = details
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tunnelmux internal API",
            "version": tunnelmux.__version__,
            "description": "For back ends: the agents of one proxy, and access to them.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"secret": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"secret": []}],
    }


def _operation_id(route: Route) -> str:
    words = [part.strip("{}") for part in route.path.split("/") if part and part != "internal"]
    return "_".join([route.method.lower(), *words]).replace(".", "_")
