"""The answers to requests that cannot be served: problem documents (RFC 9457).

Each has a stable `code` for programs and a `detail` for people that names cause and fix. For wrong
fields in the request, `errors` has one entry each, with its JSON Pointer (RFC 6901).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tunnelmux.api.problem_codes import CODES
from tunnelmux.api.route_tree import leaves
from tunnelmux.errors import (
    DeviceUnreachable,
    NoSuchRecord,
    RegistryAway,
    RegistryError,
    RegistryRefused,
)
from tunnelmux.observability import RepeatedLines, get_logger

__all__ = [
    "FieldError",
    "Problem",
    "Refused",
    "add_problem_handlers",
    "problem_response",
    "registry_refusal",
    "unreachable_refusal",
]

_log = get_logger("api")
_failures = RepeatedLines("registry failed")

MEDIA_TYPE = "application/problem+json"

_BY_STATUS = {
    404: ("not_found", "There is no such path. GET /api/openapi.json lists all paths."),
    405: ("method_not_allowed", "This path does not have this method; Allow lists those it has."),
}


class FieldError(BaseModel):
    """One part of a request that is not valid."""

    pointer: str
    place: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 section 3, with a `code` that stays the same."""

    type: str
    title: str
    status: int
    code: str
    detail: str | None = None
    errors: list[FieldError] | None = None


class Refused(Exception):
    """Raised by a handler: the request ends with this problem document."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        assert code in CODES, f"{code}: describe it in api/problem_codes.py"
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers


def problem_response(
    status: int,
    code: str,
    detail: str | None = None,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that carries one problem document; it is never cached."""
    assert code in CODES, f"{code}: describe it in api/problem_codes.py"
    document = Problem(
        type=f"urn:tunnelmux:problem:{code}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        code=code,
        detail=detail,
        errors=list(errors) or None,
    )
    return JSONResponse(
        document.model_dump(exclude_none=True),
        status,
        # Here, since the gate leaves what comes from a device's service as it is.
        {"cache-control": "no-store", **(headers or {})},
        MEDIA_TYPE,
    )


Page = Callable[[Request, Refused], Awaitable[Response | None]]


def add_problem_handlers(app: FastAPI, page: Page) -> None:
    """Make *app* answer each failure with a problem document, or with what `page` makes of it for a
    person who looks at it in a browser."""

    async def refused(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, Refused)
        shown = await page(request, exc)
        if shown is not None:
            return shown
        return problem_response(exc.status, exc.code, exc.detail, headers=exc.headers)

    async def by_registry(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RegistryError)
        return await refused(request, registry_refusal(exc))

    async def by_device(_request: Request, exc: Exception) -> Response:
        assert isinstance(exc, DeviceUnreachable)
        refusal = unreachable_refusal(exc)
        return problem_response(
            refusal.status, refusal.code, refusal.detail, headers=refusal.headers
        )

    async def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return await _invalid_request(request, exc)

    async def by_framework(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        if exc.status_code == 400:  # FastAPI's status for a body that its parsers cannot read
            code = "invalid_json" if _media_type(request) == "application/json" else "invalid_body"
            return problem_response(400, code, "The body cannot be read as what it says it is.")
        code, detail = _BY_STATUS.get(exc.status_code, ("request_refused", str(exc.detail)))
        headers = {name.lower(): value for name, value in (exc.headers or {}).items()}
        if exc.status_code == 405:
            headers["allow"] = ", ".join(sorted(_methods_of(app, request.scope["path"])))
        return await refused(request, Refused(exc.status_code, code, detail, headers=headers))

    async def unhandled(request: Request, exc: Exception) -> Response:
        _log.error("unhandled error in request", path=request.scope["path"], exc_info=exc)
        message = "The server failed on this request; its log says how."
        return problem_response(500, "internal_error", message)

    app.add_exception_handler(Exception, unhandled)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RegistryError, by_registry)
    app.add_exception_handler(DeviceUnreachable, by_device)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_framework)


def registry_refusal(exc: RegistryError) -> Refused:
    """The refusal for an error of the registry."""
    match exc:
        case NoSuchRecord():
            return Refused(404, "not_found", f"There is no such {exc.kind}.")
        case RegistryRefused():
            return Refused(409, exc.code, f"{exc}.")
        case RegistryAway():
            message = "The registry does not answer: try again in a moment."
            return Refused(503, "registry_away", message, headers={"retry-after": "2"})
    message = "The registry failed; this server's log says why."
    if _failures.may_write("registry"):  # each call causes one, those of strangers too
        _log.error("registry failed", problem=str(exc))
    return Refused(503, "registry_failed", message)


def unreachable_refusal(exc: DeviceUnreachable) -> Refused:
    """The refusal for a device that cannot be reached now."""
    status, wait = (503, "5") if exc.code == "device_offline" else (502, "2")
    detail = str(exc)
    return Refused(
        status, exc.code, f"{detail[0].upper()}{detail[1:]}.", headers={"retry-after": wait}
    )


async def _invalid_request(request: Request, exc: RequestValidationError) -> Response:
    errors: Sequence[Any] = exc.errors()
    media_type = _media_type(request)
    has_body = (
        request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    )
    if has_body and media_type not in {"application/json", "application/x-www-form-urlencoded"}:
        detail = f'The body is "{media_type}": send application/json.'
        return problem_response(415, "unsupported_media_type", detail)
    if any(error["type"] == "json_invalid" for error in errors):
        return problem_response(400, "invalid_json", f"The body is not JSON: {errors[0]['msg']}.")
    fields = [
        FieldError(
            pointer=_pointer(error["loc"][1:]), place=str(error["loc"][0]), detail=error["msg"]
        )
        for error in errors
    ]
    return problem_response(422, "invalid_request", "Some fields are not valid.", errors=fields)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _pointer(path: Sequence[object]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _methods_of(app: FastAPI, path: str) -> set[str]:
    """The methods of all routes of this path; Starlette's own answer has those of the first only.

    When some routes have exactly this path, routes with a parameter in its place do not count.
    """
    routes: list[Any] = [route for route in leaves(app.routes) if hasattr(route, "path_regex")]
    matching = [route for route in routes if route.path == path] or [
        route for route in routes if route.path_regex.match(path)
    ]
    return {method for route in matching for method in getattr(route, "methods", None) or ()}
