"""What must hold for any bytes given to the head scanner, measured by `tunnelmux.http`.

What the scanner accepts, the parser that visitors meet accepts with the same meaning, and the head
it sends on means what the proxy would have sent. That parser takes more, so which requests are
accepted is also written down here once more, in plain Python.
"""

from __future__ import annotations

import re
from itertools import pairwise

from tunnelmux.http.body import ChunkedBody
from tunnelmux.http.fields import (
    Visitor,
    binds_connection,
    end_to_end,
    forwarding_fields,
    without_own_fields,
)
from tunnelmux.http.head import (
    Field,
    RequestHead,
    first_value,
    has_member,
    head_end,
    parse_request,
    parse_response,
    write_request,
)
from tunnelmux.pump.chunks import ChunkScanner
from tunnelmux.pump.field_names import FORWARDING_NAMES, FORWARDING_PREFIXES
from tunnelmux.pump.head import HeadScanner, read_request, read_response

__all__ = [
    "HOST",
    "check_chunked",
    "check_request",
    "check_response",
    "meaning",
    "own_fields",
    "relayed_request",
    "relayed_response",
]

HOST = b"dev1.localhost:8080"
VISITOR = Visitor("203.0.113.7")


VISIBLE = rb"[\x21-\x7e\x80-\xff]"
FIELD = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+: ?(?:V(?:[\t \x21-\x7e\x80-\xff]*V)?)?\r\n".replace(
    b"V", VISIBLE
)
REQUEST = re.compile(
    rb"([A-Z-]{1,64}) /[\x21\x22\x24-\x7e]* HTTP/1[.]1\r\n((?:F)*)\r\n".replace(b"F", FIELD)
)
SIGN = re.compile(rb"[^-a-z0-9]")
FRAMING = re.compile(rb"content-length: ?(0|[1-9][0-9]{0,17})|transfer-encoding: ?chunked")
LEFT_OUT = {b"connection", b"keep-alive", *FORWARDING_NAMES}
HOSTS = re.compile(rb"(?:[-.A-Za-z0-9]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
ROUTING = {b"tunnelmux-device", b"tunnelmux-service"}
NOT_OURS = {b"http2-settings", b"te", b"upgrade"} | {
    b"proxy-" + name
    for name in (b"authenticate", b"authentication-info", b"authorization", b"connection")
}
MOST_CUTS = 24
MOST_FIELDS = 256


def plainly_accepted(raw: bytes) -> bool:
    """Whether *raw* begins with a request that `head.pyi` says is accepted."""
    match = REQUEST.match(raw)
    if match is None or match[1] == b"CONNECT":
        return False
    hosts, framing, connections, cuts, cutting = 0, 0, 0, 0, False
    routing: set[bytes] = set()
    for line in match[2].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        key = SIGN.sub(b"-", name.lower())
        frames = key in (b"content-length", b"transfer-encoding")
        if key in NOT_OURS or (key in ROUTING and (key in routing or not value)):
            return False
        routing.update({key} & ROUTING)
        left_out = key in LEFT_OUT or key.startswith((*FORWARDING_PREFIXES, b"tunnelmux-"))
        if name.lower() != key and (frames or left_out or key in (b"trailer", b"expect")):
            return False
        if frames and not FRAMING.fullmatch(name.lower() + b":" + value):
            return False
        if (key == b"host" and not HOSTS.fullmatch(value)) or (
            key == b"connection" and value.lower() not in (b"keep-alive", b"close")
        ):
            return False
        hosts += key == b"host"
        framing += frames
        connections += key == b"connection"
        cut = left_out
        cuts += cut and not cutting
        cutting = cut
    if match[2].count(b"\n") > MOST_FIELDS:
        return False
    return hosts == 1 and framing <= 1 and connections <= 1 and cuts <= MOST_CUTS


def relayed_request(raw: bytes, fields: bytes = b"") -> bytes | None:
    """The head as it goes on with these lines, or None when it is not accepted."""
    scanner = HeadScanner(of_request=True)
    scanner.feed(raw)
    return scanner.rewritten(fields)


def relayed_response(raw: bytes, *, to_head: bool = False, fields: bytes = b"") -> bytes | None:
    """The same for a response."""
    scanner = HeadScanner(of_request=False, to_head=to_head)
    scanner.feed(raw)
    return scanner.rewritten(fields)


def check_pieces(raw: bytes, whole: object, size: int, *, of_request: bool, to_head: bool) -> None:
    """In pieces it comes to the same, and no byte is looked at again for each of them."""
    scanner = HeadScanner(of_request=of_request, to_head=to_head)
    seen: object = "incomplete"
    for at in range(0, len(raw), size):
        seen = scanner.feed(raw[at : at + size])
    assert seen == whole
    assert scanner.steps <= 2 * len(raw)


def own_fields(host: bytes = HOST, visitor: Visitor = VISITOR) -> bytes:
    """The lines that the relay puts behind a visitor's fields."""
    return b"".join([b"%s: %s\r\n" % pair for pair in forwarding_fields([], visitor, host)])


def meaning(headers: list[Field]) -> dict[bytes, list[bytes]]:
    """Values by name, in their order; without Connection, which is each hop's own."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.lower() != b"connection":
            values.setdefault(name.lower(), []).append(value)
    return values


def sent_by_the_proxy(request: RequestHead) -> RequestHead:
    """What `proxy.ingress_http` and `http.exchange` send for this request, read again."""
    headers = without_own_fields(end_to_end(request.headers))
    headers = forwarding_fields(headers, VISITOR, request.host)
    if request.chunked:
        headers.append((b"Transfer-Encoding", b"chunked"))
    return parse_request(write_request(request.method, request.target, headers))


def check_verdicts(verdicts: list[object], complete_at: int) -> None:
    """Of all beginnings of one input, shortest first: nothing is taken back."""
    for place, (before, now) in enumerate(pairwise(verdicts), 1):
        if before != "incomplete":
            assert now == before, f"{before} became {now} at look {place}"
    if complete_at >= 0:
        assert verdicts[-1] != "incomplete"


def check_request(raw: bytes, step: int = 1) -> bool:
    """Whether it was accepted; every *step*th beginning of it is looked at as well."""
    sizes = [*range(0, len(raw), step), len(raw)]
    check_verdicts([read_request(raw[:size]) for size in sizes], head_end(raw))
    shape = read_request(raw)
    check_pieces(raw, shape, step, of_request=True, to_head=False)
    assert isinstance(shape, dict) == plainly_accepted(raw)
    if isinstance(shape, str):
        assert relayed_request(raw) is None
        return False
    size = shape["head_size"]
    assert size == head_end(raw)
    assert read_request(raw[: size - 1]) == "incomplete"
    seen = parse_request(raw[:size])
    at = shape["target_at"]
    target = raw[at : at + shape["target_size"]]
    assert (raw[: shape["method_size"]], target) == (seen.method, seen.target)
    assert (seen.version, seen.host, seen.authority) == (b"1.1", shape["host"], None)
    assert shape["device"] == (first_value(seen.headers, b"tunnelmux-device") or b"")
    assert shape["service"] == (first_value(seen.headers, b"tunnelmux-service") or b"")
    assert shape["binds"] == binds_connection(seen.headers, b"authorization")
    assert target[: shape["path_size"]] == seen.path.encode()
    assert raw[: shape["line_size"]] == raw.partition(b"\n")[0] + b"\n"
    assert (shape["content_length"], shape["chunked"]) == (seen.content_length or 0, seen.chunked)
    assert shape["is_head"] == (seen.method == b"HEAD")
    said = [value.lower() for name, value in seen.headers if name.lower() == b"connection"]
    assert said in ([], [b"keep-alive"], [b"close"])
    assert shape["closes"] == has_member(seen.headers, b"connection", b"close")
    fields = own_fields(seen.host)
    out = relayed_request(raw, fields)
    assert out is not None and len(out) <= size + len(fields)
    assert head_end(out) == len(out)
    wanted, sent = sent_by_the_proxy(seen), parse_request(out)
    assert (sent.method, sent.target) == (wanted.method, wanted.target)
    assert meaning(sent.headers) == meaning(wanted.headers)
    assert (sent.content_length, sent.chunked) == (wanted.content_length, wanted.chunked)
    assert first_value(sent.headers, b"connection") is None
    # And what is sent on is a head that the scanner itself would take, but for our own fields.
    assert relayed_request(relayed_request(raw) or b"") == relayed_request(raw)
    return True


def check_response(raw: bytes, *, to_head: bool, step: int = 1) -> bool:
    """Whether it was accepted; every *step*th beginning of it is looked at as well."""
    sizes = [*range(0, len(raw), step), len(raw)]
    check_verdicts([read_response(raw[:size], to_head=to_head) for size in sizes], head_end(raw))
    shape = read_response(raw, to_head=to_head)
    check_pieces(raw, shape, step, of_request=False, to_head=to_head)
    if isinstance(shape, str):
        assert relayed_response(raw, to_head=to_head) is None
        return False
    size = shape["head_size"]
    assert size == head_end(raw)
    method = b"HEAD" if to_head else b"GET"
    seen = parse_response(raw[:size], method)
    assert shape["status"] == seen.status != 101
    assert shape["is_old"] == (seen.version == b"1.0")
    bodiless = to_head or seen.status < 200 or seen.status in (204, 304)
    assert shape["bodiless"] == bodiless
    length = -1 if seen.content_length is None else seen.content_length
    assert shape["chunked"] == seen.chunked
    assert shape["content_length"] == (0 if bodiless else length)
    assert shape["until_end"] == (not bodiless and not seen.chunked and length < 0)
    keeps = has_member(seen.headers, b"connection", b"keep-alive") or not shape["is_old"]
    closes = has_member(seen.headers, b"connection", b"close") or not keeps or shape["until_end"]
    coded = first_value(seen.headers, b"transfer-encoding") is not None
    announced = bodiless and (bool(seen.content_length) or coded)
    assert shape["announces"] == announced
    assert shape["closes"] == (closes and seen.status >= 200)
    hops = {b"te", b"upgrade", b"http2-settings", b"proxy-connection"}
    hops |= {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"}
    told = has_member(seen.headers, b"connection", b"upgrade")
    dropped = [
        name.lower() in hops or name.lower().startswith(b"tunnelmux-") for name, _ in seen.headers
    ]
    assert shape["has_hop"] == (told or any(dropped))
    cookies = [value.lower() for name, value in seen.headers if name.lower() == b"set-cookie"]
    assert shape["clears"] == any(name.lower() == b"clear-site-data" for name, _ in seen.headers)
    assert shape["sets_domain"] == any(b"domain" in cookie for cookie in cookies)
    out = relayed_response(raw, to_head=to_head, fields=b"Connection: close\r\n")
    assert out is not None and len(out) <= size + 19
    assert head_end(out) == len(out)
    sent = parse_response(out, method)
    assert (sent.status, sent.reason, sent.version) == (seen.status, seen.reason, b"1.1")
    assert sent.chunked == seen.chunked
    assert sent.content_length == (None if seen.status == 204 else seen.content_length)
    framing = (b"content-length", b"transfer-encoding")
    wanted = without_own_fields(end_to_end(seen.headers))
    assert meaning([pair for pair in sent.headers if pair[0].lower() not in framing]) == meaning(
        [pair for pair in wanted if pair[0].lower() not in framing]
    )
    return True


def check_chunked(raw: bytes, cuts: list[int]) -> bool:
    """Whether the body was walked to its end; cut at each of *cuts* it comes to the same."""
    whole = ChunkScanner()
    used, going = whole.feed(raw)
    ended = (whole.done, whole.at_trailers, whole.broken)
    assert any(ended) or used == len(raw)
    assert sum(ended) <= 1
    for cut in cuts:
        parts = ChunkScanner()
        first, before = parts.feed(raw[:cut])
        assert first == min(used, cut)
        second, behind = parts.feed(raw[cut:]) if first == cut else (0, b"")
        assert (first + second, before + behind) == (used, going)
        if first == cut:
            assert (parts.done, parts.at_trailers, parts.broken) == ended
    body = ChunkedBody(65_536)
    content = body.feed(raw[:used])  # raises BadBody where the scanner is the laxer one
    assert body.done == whole.done
    assert (body.rest, body.trailers) == (b"", [])
    plain = ChunkedBody(65_536)
    assert plain.feed(going) == content
    assert plain.done == whole.done
    if whole.done:
        assert whole.feed(b"more") == (0, b"")
    return whole.done
