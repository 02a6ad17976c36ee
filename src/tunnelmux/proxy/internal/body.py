"""Read the whole body of a call."""

from __future__ import annotations

import trio

from tunnelmux.http import RequestHead
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.http.head import has_member
from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.proxy.internal.routes import Call

__all__ = ["read_whole_body"]


async def read_whole_body(call: Call, *, most: int, over: ApiError) -> bytes:
    """The body, of at most `most` bytes; raises ApiError, which is `over` when it is longer."""
    if call.body is not None:
        return call.body
    server, limits = call.server, call.limits
    if (call.request.content_length or 0) > most:
        raise over
    if not server.body_done and _expects_100(call.request):
        await server.send_interim(100, b"Continue", [])
    try:
        with trio.fail_after(limits.forward_timeout):
            return await server.read_whole_body(most)
    except BodyTooLong:
        raise over from None
    except BadBody as error:
        raise ApiError("INVALID_REQUEST", f"the request cannot be used: {error}") from None
    except trio.TooSlowError:
        raise ApiError(
            "HEAD_TIMEOUT", f"the request's body took longer than {limits.forward_timeout:g} s"
        ) from None


def _expects_100(request: RequestHead) -> bool:
    return has_member(request.headers, b"expect", b"100-continue")
