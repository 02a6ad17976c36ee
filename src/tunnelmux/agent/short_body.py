"""The body of a request to the agent itself: a token, an order, a lease."""

from __future__ import annotations

import trio

from tunnelmux.http import Refusal, Refused, ServerConnection
from tunnelmux.http.body import BadBody, BodyTooLong

__all__ = ["read_short_body"]


async def read_short_body(server: ServerConnection, limit: int, timeout: float) -> bytes:
    """The whole body, at most `limit` bytes, if it arrives within `timeout` seconds.

    Raises Refused: 400 for a body that is longer or whose coding is bad (RFC 9112 section 7.1), 408
    for one that is late.
    """
    try:
        with trio.fail_after(timeout):
            return await server.read_whole_body(limit)
    except trio.TooSlowError:
        message = f"The body was not here within {timeout:g} s."
        raise Refused(Refusal(408, "body-stalled", message)) from None
    except BodyTooLong:
        message = f"The body is longer than {limit} bytes."
        raise Refused(Refusal(400, "bad-request", message)) from None
    except BadBody as error:
        raise Refused(Refusal(400, "bad-request", f"The body is bad: {error}.")) from None
