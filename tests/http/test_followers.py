"""`pump.followers`: both directions of an exchange, in any cuts, against the path by h11."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.follower_checks import JUDGE, check_answer, check_request_body
from support.mutations import MUTATIONS, mutated
from tunnelmux.http.judge import HeadJudge, Verdict
from tunnelmux.limits import IngressLimits
from tunnelmux.pump import followers
from tunnelmux.pump.followers import AnswerFollower, RequestFollower

END = b"\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

ANSWERS = {
    # Of old and odd servers, which curl and browsers take
    "Content-Length twice, the same": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2"
    + END,
    "Content-Length in a list": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2" + END,
    "Content-Length with zeros": b"HTTP/1.1 200 OK\r\nContent-Length: 0002" + END,
    "Content-Length in blanks": b"HTTP/1.1 200 OK\r\nContent-Length:  2 " + END,
    "Content-Length and chunked": CHUNKED[:-2] + b"Content-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Request denied\r\nContent-Length: 2" + END,
    "no space behind the status": b"HTTP/1.1 200\r\nContent-Length: 2" + END,
    "lines end in LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "some lines end in LF": b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\nok",
    "a folded field": b"HTTP/1.1 200 OK\r\nServer: x\r\n y\r\nContent-Length: 2" + END,
    "blanks before a colon": b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 2" + END,
    "a control character": b"HTTP/1.1 200 OK\r\nServer: x\x01\r\nContent-Length: 2" + END,
    "Connection names a field": (
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: 2" + END
    ),
    "fields of our own": b"HTTP/1.1 200 OK\r\nTunnelmux-Reason: x\r\nContent-Length: 2" + END,
    "a disguised field": b"HTTP/1.1 200 OK\r\nContent_Length: 9\r\nContent-Length: 2" + END,
    "204, chunked": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "1.0, chunked": CHUNKED.replace(b"1.1", b"1.0") + b"2\r\nok\r\n0\r\n\r\n",
    "until the end": b"HTTP/1.0 200 OK\nServer: x\n\nuntil the end",
    "interim, odd": b"HTTP/1.1 103 Hints\nLink: </a>\n\nHTTP/1.1 200 OK\r\nContent-Length: 2" + END,
    "interim without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 350 + b"HTTP/1.1 204 A\r\n\r\n",
    "interim without end, odd": b"HTTP/1.1 102 \n\n" * 600 + b"HTTP/1.1 204 A\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2" + END,
    # Trailers
    "a trailer": CHUNKED + b"2\r\nok\r\n0\r\nX-Checksum: abc\r\n\r\n",
    "an announced trailer": (
        CHUNKED[:-2] + b"Trailer: X-Checksum\r\n\r\n2\r\nok\r\n0\r\nX-Checksum: abc\r\n\r\n"
    ),
    "grpc-web": CHUNKED + b"2\r\nok\r\n0\r\nGrpc-Status: 0\r\nGrpc-Message:OK\r\n\r\n",
    "trailers that frame": CHUNKED
    + b"2\r\nok\r\n0\r\nContent-Length: 9\r\nHost: x\r\nA: b\r\n\r\n",
    "blanks behind sizes": CHUNKED + b"2  \r\nok\r\n0 \r\n\r\n",
    "extensions": CHUNKED + b'2;a="b"\r\nok\r\n0;c\r\n\r\n',
    # Broken ones
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nA: b\r\n",
    "SHOUTcast": b"ICY 200 OK\r\nicy-name: x\r\n\r\nmusic",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3" + END,
    "a length that is not counted to": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999" + END
    ),
    "an odd name": b"HTTP/1.1 200 OK\r\nX (y): z\r\nContent-Length: 2" + END,
    "too short": b"HTTP/1.1 200 OK\r\nContent-Length: 3" + END,
    "no last chunk": CHUNKED + b"2\r\nok\r\n",
    "a chunk too long": CHUNKED + b"1\r\nok\r\n0\r\n\r\n",
    "half a trailer": CHUNKED + b"0\r\nA: b\r\n",
    "a trailer without a colon": CHUNKED + b"0\r\nA\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 300 + b"Content-Length: 2" + END,
    "too many trailers": CHUNKED + b"0\r\n" + b"a:\r\n" * 300 + b"\r\n",
    "too large a head": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 9000 + END,
}


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_mean_on_both_paths_the_same(raw: bytes, method: bytes) -> None:
    check_answer(raw, method, [1, 2, 7, len(raw) or 1])


REQUEST = b"POST /a HTTP/1.1\r\nHost: dev1.localhost\r\n"
REQUESTS = {
    "done": [
        REQUEST + b"\r\n",
        REQUEST + b"Content-Length: 2\r\n\r\nokGET / HTTP/1.1\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nGET",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0;a\r\n\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum:1\r\n\r\nGET",
        REQUEST + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-For: 1\r\nHost: x\r\n\r\n",
    ],
    "declined": [
        REQUEST + b"TE: trailers\r\nContent-Length: 2\r\n\r\nok",
        REQUEST + b" folded\r\n\r\n",
        b"\x16\x03\x01",
        REQUEST + b"A: " + b"b" * 9000 + b"\r\n\r\n",
        REQUEST + b"a:\r\n" * 300 + b"\r\n",
    ],
    "broken": [
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nok\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA\r\n\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 300 + b"\r\n",
        REQUEST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"b" * 9000 + b"\r\n\r\n",
    ],
    "head": [REQUEST, REQUEST + b"A: b\r\n\r"],
}


@pytest.mark.parametrize(
    ("state", "raw"), [(state, raw) for state, raws in REQUESTS.items() for raw in raws]
)
def test_requests_go_on_with_the_same_meaning_or_not_at_all(state: str, raw: bytes) -> None:
    assert check_request_body(raw, [1, 2, 7, len(raw)]) == state


LINES = [
    *(b"Content-Length: 2", b"Content-Length: 02", b"Content-Length: 3", b"Content-Length:  2"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Trailer: X", b"X-A : b"),
    *(b"Connection: close", b"Connection: keep-alive, X-A", b"Connection: Upgrade", b" folded"),
    *(b"Tunnelmux-Reason: x", b"Server: x\x01", b"X_Real_IP: 1", b"WWW-Authenticate: NTLM"),
]
STATUS_LINES = [
    *(b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 304 No", b"ICY 200"),
    *(b"HTTP/1.1 100 Go on", b"HTTP/1.1 999 x", b"HTTP/1.1 200", b"HTTP/1.1 101 x"),
]
BODIES = [
    *(b"", b"ok", b"okk", b"2\r\nok\r\n0\r\n\r\n", b"2 ;x\r\nok\r\n0\r\nA: b\r\n\r\n"),
    *(
        b"2\r\nok\r\n0\r\n\n",
        b"2\r\nok\r\n0\r\nHost: x\r\n\r\n",
        b"2\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ),
]
HEADS = st.builds(
    lambda line, fields, end: end.join([line, *fields, b"", b""]),
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from(LINES), max_size=4),
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
)


@given(
    st.lists(HEADS, min_size=1, max_size=2).map(b"".join),
    st.sampled_from(BODIES),
    MUTATIONS,
    st.booleans(),
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.integers(1, 30),
)
@settings(max_examples=400)
def test_answers_of_any_parts(
    head: bytes,
    body: bytes,
    changes: list[tuple[int, str, bytes]],
    changed: bool,
    method: bytes,
    step: int,
) -> None:
    raw = mutated(head + body, changes) if changed else head + body
    check_answer(raw, method, [step, len(raw) or 1])


@given(
    st.sampled_from([raw for raws in REQUESTS.values() for raw in raws]),
    MUTATIONS,
    st.integers(1, 30),
)
@settings(max_examples=300)
def test_requests_with_a_few_bytes_changed(
    raw: bytes, changes: list[tuple[int, str, bytes]], step: int
) -> None:
    raw = mutated(raw, changes)
    check_request_body(raw, [step, len(raw) or 1])


# -- Costs and tables -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 240 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\n" + b"a: " + b"b" * 60_000 + b"\n\n",
        b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 15_000,
        CHUNKED + b"0\r\nA: " + b"b" * 60_000 + b"\r\n\r\n",
        CHUNKED + b"0\r\n" + b"A:\r\n" * 240 + b"\r\n",
        (b"HTTP/1.1 103 Early Hints\r\nLink: " + b"b" * 4000 + b"\r\n\r\n") * 16
        + b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["fields", "a long one", "odd", "endless", "trailer", "trailers", "interim"],
)
def test_an_answer_in_single_bytes_costs_as_much_as_in_one_piece(raw: bytes) -> None:
    """Counted in bytes looked at: once each for the line's end, the line, and the head's end."""
    steps = []
    for size in (1, 1000, len(raw)):
        follower = AnswerFollower(JUDGE)
        follower.asked(b"GET")
        for at in range(0, len(raw), size):
            follower.feed(raw[at : at + size])
        steps.append(follower.steps)
    assert max(steps) <= 3 * len(raw) + 8


ENDLESS = (
    "its answer has more than 16 interim heads (1xx) within a minute (limits.max_interim_heads)"
)


def test_a_target_has_no_more_than_16_interim_heads_judged() -> None:
    """2,000 of them cost 20 ms, in which no other device's visitors were served."""
    judged = []

    class CountingJudge(HeadJudge):
        def answer(self, raw: bytes, method: bytes) -> Verdict | str:
            judged.append(raw)
            return super().answer(raw, method)

    follower = AnswerFollower(CountingJudge(IngressLimits()), max_head_bytes=65_536)
    follower.asked(b"GET")
    for _ in range(2000):
        follower.feed(b"HTTP/1.1 103 Early Hints\r\nX-A : b\r\n\r\n")
        if follower.problem is not None:
            break
    assert follower.problem == ENDLESS
    assert len(judged) == 17


def test_interim_heads_may_come_for_as_long_as_an_answer_takes() -> None:
    """As signs of life: one every ten seconds."""
    follower = AnswerFollower(JUDGE)
    follower.asked(b"GET")
    for at in range(0, 3600, 10):
        follower.feed(b"HTTP/1.1 102 Processing\r\n\r\n", now=at)
    assert follower.problem is None
    for _ in range(16):
        follower.feed(b"HTTP/1.1 102 Processing\r\n\r\n", now=3600)
    assert follower.problem is None
    follower.feed(b"HTTP/1.1 102 Processing\r\n\r\n", now=3659)
    assert follower.problem == ENDLESS


def test_interim_heads_of_a_minute_have_a_size_together() -> None:
    follower = AnswerFollower(JUDGE)
    follower.asked(b"GET")
    head = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"b" * 40_000 + b"\r\n\r\n"
    follower.feed(head)
    assert follower.problem is None
    follower.feed(head, now=60)
    assert follower.problem is None
    follower.feed(head, now=119)
    assert follower.problem == "its interim heads (1xx) have more than 65536 bytes together"


def test_trailers_of_a_request_in_single_bytes_cost_as_much_as_in_one_piece() -> None:
    raw = REQUEST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"b" * 60_000 + b"\r\n\r\n"
    follower = RequestFollower(JUDGE)
    for at in range(len(raw)):
        follower.feed(raw[at : at + 1])
    assert follower.state == "done"
    assert follower.steps <= 3 * len(raw)


@pytest.mark.parametrize("table", [followers.REQUEST_TABLE, followers.ANSWER_TABLE])
def test_every_state_of_a_table_is_reached_from_its_first(
    table: dict[int, dict[int, int]],
) -> None:
    reached, fresh = set[int](), {0}
    while fresh:
        reached |= fresh
        fresh = {after for state in fresh for after in table.get(state, {}).values()} - reached
    assert reached == set(range(len(reached)))
    assert set(table) < reached


def test_a_step_that_is_not_in_the_table_is_a_bug() -> None:
    follower = AnswerFollower(JUDGE)
    follower.asked(b"GET")
    with pytest.raises(AssertionError, match="an answer that is 'head'"):
        follower.asked(b"GET")
    with pytest.raises(AssertionError, match="a request that is 'idle'"):
        RequestFollower(JUDGE).finish()


def test_a_follower_goes_on_with_the_next_exchange() -> None:
    request, answer = RequestFollower(JUDGE), AnswerFollower(JUDGE)
    for turn in range(3):
        raw = b"GET /%d HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n" % turn
        assert request.feed(raw + b"GET", fields=b"A: b\r\n") == (
            len(raw),
            raw[:-2] + b"A: b\r\n\r\n",
        )
        answer.asked(b"GET")
        assert answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2" + END + b"more") == (
            40,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2" + END,
        )
        assert answer.state == request.state == "done"
        request.finish()
        assert request.state == "idle"
