"""What must hold for any bytes given to the followers of an exchange, measured by h11's path.

Whatever `tunnelmux.http` makes of a whole message, head, body and trailers, a visitor or a target
sees the same of what a follower lets through, as h11 itself reads it; and the cuts do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h11

from support.head_checks import meaning
from tunnelmux.http.body import BadBody, BodyDecoder, ChunkedBody, LengthBody, UntilEndBody
from tunnelmux.http.fields import end_to_end, safe_trailers, without_own_fields
from tunnelmux.http.head import BadHead, Field, head_end, parse_request, parse_response
from tunnelmux.http.judge import HeadJudge
from tunnelmux.limits import IngressLimits
from tunnelmux.pump.followers import AnswerFollower, RequestFollower

__all__ = ["Seen", "answer_by_h11", "check_answer", "check_request_body"]

FRAMING = (b"content-length", b"transfer-encoding")
LIMITS = IngressLimits(max_head_bytes=8192)
JUDGE = HeadJudge(LIMITS)


@dataclass
class Seen:
    """What one end sees of a message."""

    status: int = 0
    headers: dict[bytes, list[bytes]] = field(default_factory=dict)
    content: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    end: str = "whole"


def fields_of(headers: list[Field]) -> dict[bytes, list[bytes]]:
    kept = without_own_fields(end_to_end(headers))
    return meaning([pair for pair in kept if pair[0].lower() not in FRAMING])


def answer_by_h11(raw: bytes, method: bytes) -> Seen:
    """What the path by h11 makes of the bytes that a target sends before it closes."""
    interims = interim_bytes = 0
    while True:
        end = head_end(raw)
        if end < 0 or end > LIMITS.max_head_bytes:
            return Seen(end="refused" if raw else "missing")
        try:
            head = parse_response(raw[:end], method)
        except BadHead:
            return Seen(end="refused")
        raw = raw[end:]
        if head.status == 101:
            return Seen(end="refused")
        if not head.is_interim:
            break
        interims += 1
        interim_bytes += end
        if interims > LIMITS.max_interim_heads or interim_bytes > LIMITS.max_head_bytes:
            return Seen(end="refused")
    seen = Seen(head.status, fields_of(head.headers))
    body: BodyDecoder = UntilEndBody()
    if method == b"HEAD" or head.status in (204, 304):
        body = LengthBody(0)
    elif head.chunked:
        body = ChunkedBody(LIMITS.max_head_bytes)
    elif head.content_length is not None:
        body = LengthBody(head.content_length)
    try:
        if raw and not body.done:
            seen.content = body.feed(raw)
        if not body.done:
            body.feed_eof()
        seen.trailers = safe_trailers(body.trailers)
    except BadBody:
        seen.end = "broken"
    return seen


def answer_followed(raw: bytes, method: bytes, step: int) -> tuple[Seen, bytes]:
    """What a visitor sees, by h11's own reading, of what a follower lets through."""
    follower = AnswerFollower(JUDGE, max_head_bytes=LIMITS.max_head_bytes)
    follower.asked(method)
    out = b""
    for at in range(0, len(raw), step):
        piece = raw[at : at + step]
        used, given = follower.feed(piece)
        out += given
        assert used == len(piece) or follower.state in ("done", "refused", "broken")
        if used < len(piece) or follower.state in ("done", "refused", "broken"):
            break
    follower.end()
    assert follower.steps <= 6 * len(raw) + 64
    seen = Seen(end=follower.state if follower.state != "done" else "whole")
    if seen.end in ("refused", "missing") or not follower.status:
        return seen, out
    visitor = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    fields = [(b"Host", b"x")]
    visitor.send(h11.Request(method=method, target=b"/", headers=fields))
    visitor.send(h11.EndOfMessage())
    visitor.receive_data(out)
    if follower.until_end and seen.end == "whole":
        visitor.receive_data(b"")
    while True:
        event = visitor.next_event()
        if isinstance(event, h11.Response):
            seen.status, seen.headers = event.status_code, fields_of(event.headers.raw_items())
        elif isinstance(event, h11.Data):
            seen.content += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            seen.trailers = event.headers.raw_items()
            return seen, out
        elif not isinstance(event, h11.InformationalResponse):
            assert seen.end == "broken", f"{event} before the end of {out!r}"
            return seen, out


def check_answer(raw: bytes, method: bytes, steps: list[int]) -> Seen:
    """Both paths show a visitor the same of what a target sends before it closes."""
    wanted = answer_by_h11(raw, method)
    outs = set()
    for step in steps:
        seen, out = answer_followed(raw, method, step)
        outs.add(out)
        assert seen.end == wanted.end, (seen, wanted)
        assert (seen.status, seen.headers) == (wanted.status, wanted.headers)
        if wanted.end == "whole":
            assert (seen.content, seen.trailers) == (wanted.content, wanted.trailers)
    assert len(outs) == 1 or wanted.end == "broken"
    return wanted


def check_request_body(raw: bytes, steps: list[int]) -> str:
    """What goes on of a request is the request; how its follower ended."""
    states = set()
    for step in steps:
        follower = RequestFollower(JUDGE, max_head_bytes=LIMITS.max_head_bytes)
        out, taken = b"", 0
        for at in range(0, len(raw), step):
            used, given = follower.feed(raw[at : at + step])
            out, taken = out + given, taken + used
            if follower.state in ("done", "declined", "broken"):
                break
        states.add(follower.state)
        if follower.state in ("idle", "head", "declined"):
            assert out == b""
            assert follower.kept_bytes == raw[:taken], "h11 would not get every byte"
            continue
        request = parse_request(raw[: head_end(raw)])
        body: BodyDecoder = LengthBody(request.content_length or 0)
        if request.chunked:
            body = ChunkedBody(LIMITS.max_head_bytes)
        content = b""
        try:
            if taken > head_end(raw):
                content = body.feed(raw[head_end(raw) : taken])
        except BadBody:
            assert follower.state == "broken"
        target = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        target.receive_data(out)
        seen, ended = b"", None
        event = target.next_event()
        assert isinstance(event, h11.Request)
        assert (event.method, event.target) == (request.method, request.target)
        while isinstance(event := target.next_event(), h11.Data):
            seen += bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            ended = event.headers.raw_items()
        assert (ended is not None) == (follower.state == "done")
        if follower.state == "done":
            assert body.done
            assert (body.rest, seen, ended) == (b"", content, safe_trailers(body.trailers))
    assert len(states) == 1
    return states.pop()
