"""Which events of a command may follow each other."""

from __future__ import annotations

import pytest

from tunnelmux.commands import Event, EventOrder, Exited, InvalidEvent, Output, Started, Truncated

STARTED = Started("c", 1.0)
END = Exited(0)


def test_what_a_command_says_passes() -> None:
    order = EventOrder("c")
    for event in (
        STARTED,
        Output("stdout", b"x"),
        Output("stdout", b"y"),
        Truncated("stdout", 2),
        Truncated("stderr", 2),
        END,
    ):
        order.check(event)
    assert order.has_ended


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([STARTED, STARTED], "a second started"),
        ([Started("another", 1.0)], "commandId of another"),
        ([Truncated("stderr", 1), Truncated("stderr", 2)], "a second truncated for stderr"),
        ([END, Output("stdout", b"x")], "after the exit"),
        ([END, END], "after the exit"),
    ],
)
def test_what_would_go_on_for_ever_is_refused(events: list[Event], problem: str) -> None:
    order = EventOrder("c")
    *good, last = events
    for event in good:
        order.check(event)
    with pytest.raises(InvalidEvent, match=problem):
        order.check(last)
