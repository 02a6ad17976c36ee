"""Events as lines, and as one result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.commands import (
    MAX_MESSAGE,
    REASONS,
    CommandResult,
    Event,
    Exited,
    InvalidEvent,
    Output,
    SshUse,
    Started,
    Truncated,
    collect,
    decode_event,
    encode_event,
    failure,
)

STREAMS = st.sampled_from(["stdout", "stderr"])
COUNTS = st.integers(0, 2**63 - 1)
MICROSECONDS = st.integers(0, 10**9).map(lambda micro: micro / 1e6)
SSH_USES = st.none() | st.builds(
    SshUse,
    st.sampled_from([None, "new", "reused", "failed"]),
    st.none() | MICROSECONDS,
    st.integers(0, 10_000),
    st.floats(0, 86_400),
)
EVENTS = (
    st.builds(Started, st.text(), st.floats(0, 1e12), SSH_USES)
    | st.builds(Output, STREAMS, st.binary())
    | st.builds(Truncated, STREAMS, COUNTS)
    | st.builds(
        Exited,
        COUNTS,
        MICROSECONDS,
        COUNTS,
        COUNTS,
        st.none() | st.sampled_from(sorted(REASONS)),
        st.none() | st.text(st.characters(exclude_categories=("C", "Z")), max_size=MAX_MESSAGE),
        SSH_USES,
    )
)


@given(event=EVENTS)
def test_an_event_is_one_line_and_comes_back_as_it_was(event: Event) -> None:
    line = encode_event(event)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode_event(line) == event


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no \x1b[2Jway\r\n", "no  [2Jway  "),
        ("x\u202ey", "x y"),
        ("y" * 100_000, "y" * 2047 + "…"),
    ],
)
def test_a_message_is_one_line_that_a_terminal_can_show(message: str, shown: str) -> None:
    event = decode_event(encode_event(failure("failed", message)))
    assert isinstance(event, Exited)
    assert event.message == shown


@pytest.mark.parametrize("reason", ["", "x" * 65, "no luck", "a\x1b"])
def test_a_reason_is_a_code(reason: str) -> None:
    with pytest.raises(InvalidEvent, match="reason must be a code"):
        decode_event(encode_event(failure(reason, "no")))


def test_the_lines_are_these() -> None:
    """Other programs read them: fields may be added, never changed."""
    lines = [
        (Started("c1", 1.5), {"event": "started", "commandId": "c1", "at": 1.5}),
        (Output("stdout", b"\xff"), {"event": "stdout", "data": "/w=="}),
        (Output("stderr", b"hi"), {"event": "stderr", "data": "aGk="}),
        (Truncated("stdout", 9), {"event": "truncated", "stream": "stdout", "limit": 9}),
        (
            Exited(3, 0.25, 1, 2),
            {"event": "exit", "exitCode": 3, "duration": 0.25, "stdoutBytes": 1, "stderrBytes": 2},
        ),
        (
            failure("timeout", "too late"),
            {
                "event": "exit",
                "exitCode": 124,
                "duration": 0.0,
                "stdoutBytes": 0,
                "stderrBytes": 0,
                "reason": "timeout",
                "message": "too late",
            },
        ),
    ]
    for event, wanted in lines:
        assert json.loads(encode_event(event)) == wanted
    told = json.loads(encode_event(Started("c1", 1.5, SshUse("new", 0.25, 3, 65.0))))
    assert told["ssh"] == {"connection": "new", "seconds": 0.25, "pooled": 3, "keptFor": 65.0}
    told = json.loads(encode_event(Exited(0, ssh=SshUse(pooled=1))))
    assert told["ssh"] == {"pooled": 1, "keptFor": 0.0}


SOUND_SSH = {"connection": "new", "seconds": 0.5, "pooled": 2, "keptFor": 60}


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "new",
        {},
        SOUND_SSH | {"connection": "stolen"},
        SOUND_SSH | {"connection": ["new"]},
        SOUND_SSH | {"seconds": "1"},
        SOUND_SSH | {"seconds": -1},
        SOUND_SSH | {"seconds": float("nan")},
        SOUND_SSH | {"pooled": -1},
        SOUND_SSH | {"pooled": 1.5},
        SOUND_SSH | {"pooled": True},
        SOUND_SSH | {"pooled": 10**30},
        SOUND_SSH | {"keptFor": None},
        SOUND_SSH | {"keptFor": float("inf")},
    ],
    ids=str,
)
def test_what_cannot_be_true_of_a_pool_is_left_out_and_costs_no_command(said: object) -> None:
    line = json.dumps({"event": "started", "commandId": "c", "at": 1, "ssh": said}).encode()
    assert decode_event(line) == Started("c", 1.0)
    end = json.loads(encode_event(Exited(3, 0.5))) | {"ssh": said}
    assert decode_event(json.dumps(end).encode()) == Exited(3, 0.5)


def test_what_is_too_much_for_a_pool_is_cut() -> None:
    said = SOUND_SSH | {"pooled": 2**62, "keptFor": 1e300}
    line = json.dumps({"event": "started", "commandId": "c", "at": 1, "ssh": said}).encode()
    assert decode_event(line) == Started("c", 1.0, SshUse("new", 0.5, 10_000, 86_400.0))


@pytest.mark.parametrize(
    ("reason", "code"), [("timeout", 124), ("forbidden", 126), ("refused", 255), ("lost", 255)]
)
def test_a_failure_has_the_exit_code_of_its_kind(reason: str, code: int) -> None:
    assert failure(reason, "x").exit_code == code


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\n",
        b"[]\n",
        b"[" * 100_000,
        b"{}\n",
        b'{"event": "exited"}\n',
        b'{"event": "stdout"}\n',
        b'{"event": "stdout", "data": "no base64"}\n',
        b'{"event": "started", "commandId": 5, "at": 1}\n',
        b'{"event": "started", "commandId": "c", "at": NaN}\n',
        b'{"event": "started", "commandId": "c", "at": -1}\n',
        b'{"event": "truncated", "stream": "stdin", "limit": 1}\n',
        b'{"event": "exit", "exitCode": true, "duration": 1, "stdoutBytes": 0, "stderrBytes": 0}\n',
        b'{"event": "exit", "exitCode": 1e3, "duration": 1, "stdoutBytes": 0, "stderrBytes": 0}\n',
        b'{"event": "exit", "exitCode": 0, "duration": 1, "stdoutBytes": -1, "stderrBytes": 0}\n',
        b'{"event": "exit", "exitCode": 0, "duration": 1'
        + b"0" * 400
        + b', "stdoutBytes": 0, "stderrBytes": 0}\n',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidEvent):
        decode_event(line)


@given(line=st.binary(max_size=200))
def test_any_line_is_an_event_or_refused(line: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        decode_event(line)


async def collected(*events: Event, limit: int | None = None) -> CommandResult:
    async def stream() -> AsyncIterator[Event]:
        for event in events:
            yield event

    return await collect(stream(), limit=limit)


async def test_the_result_is_the_object_that_back_ends_know() -> None:
    result = await collected(
        Started("c", 0.0),
        Output("stdout", b"a"),
        Output("stderr", b"x"),
        Output("stdout", b"b\n"),
        Exited(7),
    )
    assert result.to_json() == {"stdout": "ab\n", "stderr": "x", "exitCode": 7}


async def test_a_character_in_two_pieces_is_whole_in_the_text() -> None:
    result = await collected(Output("stdout", b"\xc3"), Output("stdout", b"\xa4"), Exited(0))
    assert (result.stdout, result.replaced) == ("ä", False)
    real = await collected(Output("stdout", "\N{REPLACEMENT CHARACTER}".encode()), Exited(0))
    assert not real.replaced


async def test_what_is_no_utf8_is_replaced_and_said_so() -> None:
    result = await collected(Output("stderr", b"a\xffb"), Exited(0))
    assert result.to_json()["stderr"] == "a\N{REPLACEMENT CHARACTER}b"
    assert result.to_json()["encoding"] == "utf-8, invalid bytes replaced"


async def test_a_limit_holds_for_each_stream_whatever_the_sender_does() -> None:
    result = await collected(
        Output("stdout", b"abc"),
        Output("stdout", b"def"),
        Output("stderr", b"xy"),
        Exited(0),
        limit=4,
    )
    assert result.stdout == "abcd\n[truncated: stdout was over 4 bytes]\n"
    assert (result.stderr, result.truncated) == ("xy", True)


async def test_the_reason_of_a_failure_is_the_last_line_of_stderr() -> None:
    result = await collected(Output("stderr", b"half a li"), failure("lost", "gone"))
    assert result.to_json() == {
        "stdout": "",
        "stderr": "half a li\ngone\n",
        "exitCode": 255,
        "reason": "lost",
    }


async def test_events_that_stop_are_a_lost_command() -> None:
    result = await collected(Started("c", 0.0), Output("stdout", b"a"))
    assert (result.exit_code, result.reason) == (255, "lost")
