"""`GET /v1/logs` of the agent's own API: the last lines of its log, and those that come."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs

import trio

from tunnelmux.http import Refusal, Refused, RequestHead, ServerConnection, while_visitor_stays
from tunnelmux.observability.recent import RecentLines, recent
from tunnelmux.wire import LOGS_PATH

__all__ = ["serve_logs"]

_LOOK = 0.25
# Seconds between two looks for new lines: they are written by threads, too.

_HEARTBEAT = 15.0
# Seconds without a line after which one says that the connection lives.

_MOST_AT_ONCE = 64
# Lines of one write: some 20 KB.


async def serve_logs(
    server: ServerConnection, request: RequestHead, is_ending: Callable[[], bool]
) -> None:
    """Answer one request: lines of JSON, `{"process", "number", "line"}` each; the first has no
    `line` and says behind which one they begin.

    `lines` says how many of the last ones, `follow=1` that those to come are wanted too, until the
    caller leaves or the agent is ending. `process` and `after` name the last line that the caller
    has: what came since is sent, of a newer process all of it, and a `{"missing"}` where some is
    not kept any more. Raises Refused, and VisitorGone when the caller is gone.
    """
    if request.method != b"GET":
        allow = [(b"Allow", b"GET")]
        message = f"{LOGS_PATH.decode()} is only to be read."
        raise Refused(Refusal(405, "bad-request", message, headers=allow))
    kept = recent()
    if kept is None:
        message = "This device keeps no lines of its log for others (keep_lines under [log])."
        raise Refused(Refusal(403, "forbidden", message))
    given = parse_qs(request.target.partition(b"?")[2].decode("latin-1"))
    query = {name: values[-1] for name, values in given.items()}
    position = _position(query, kept)
    headers = [(b"Content-Type", b"application/x-ndjson"), (b"Cache-Control", b"no-store")]
    begin = f'{{"process":{json.dumps(kept.process)},"number":{position}}}\n'
    await server.send_response(200, b"OK", headers, first=begin.encode())
    if query.get("follow") != "1":
        await _send_after(server, kept, position)
        await server.send_body(b"", end=True)
        return
    async with while_visitor_stays(server):
        await _follow(server, kept, position, is_ending)


def _position(query: dict[str, str], kept: RecentLines) -> int:
    if "process" in query:
        is_same = query["process"] == kept.process
        return _number(query.get("after"), kept.count) if is_same else 0
    return max(kept.count - _number(query.get("lines"), 100), kept.first - 1)


def _number(text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refused(Refusal(400, "bad-request", "lines and after are whole numbers."))
    return int(text)


async def _send_after(server: ServerConnection, kept: RecentLines, position: int) -> int:
    lines = kept.after(position)
    if lines and lines[0][0] > position + 1:
        await server.send_body(b'{"missing":%d}\n' % (lines[0][0] - position - 1))
    for start in range(0, len(lines), _MOST_AT_ONCE):
        body = "".join(
            f'{{"process":{json.dumps(kept.process)},"number":{number},"line":{line}}}\n'
            for number, line in lines[start : start + _MOST_AT_ONCE]
        )
        await server.send_body(body.encode())
    return lines[-1][0] if lines else position


async def _follow(
    server: ServerConnection, kept: RecentLines, position: int, is_ending: Callable[[], bool]
) -> None:
    """Until the caller leaves, the agent ends, or it keeps no lines any more."""
    said = trio.current_time()
    while recent() is kept and not is_ending():
        sent = await _send_after(server, kept, position)
        now = trio.current_time()
        if sent != position:
            position, said = sent, now
        elif now - said >= _HEARTBEAT:
            await server.send_body(b"{}\n")
            said = now
        await trio.sleep(_LOOK)
    await server.send_body(b"", end=True)
