"""Case 120: WebSocket messages cut anywhere, and what ends a tunnel's WebSocket."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest
import trio

from support.exchanges import echo_through, serving_echo
from support.peer_process import PeerError, linked
from support.peers import Implementation
from tunnelmux.errors import SessionLost

LeaveOut = Callable[[str], NoReturn]

COUNTS = {"bytes": 1_000, "random": 1_000_000, "large": 3_000_000}


@pytest.mark.whole_table
@pytest.mark.parametrize("messages", COUNTS)
@pytest.mark.case(120, "messages of 1 byte, of random length, and of 1 MiB")
async def test_messages_cut_anywhere(
    implementation: Implementation, role: str, messages: str, leave_out: LeaveOut
) -> None:
    count = COUNTS[messages]
    if messages == "large" and implementation.language != "go":
        leave_out("only the Go program joins frames into messages of 1 MiB")
    async with linked(implementation, role, "ws", options=f"messages={messages}") as link:
        await link.call("serve echo")
        async with serving_echo(link.session):
            await echo_through(link.session, count)
            await link.call(f"exchange 2 {count} concurrent=2")


@pytest.mark.whole_table
@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("text", "binary messages only"),
        ("ws-close 1000", None),
        ("ws-close 1001", None),
        ("ws-close 1002", "code 1002"),
        ("ws-close 1011", "code 1011"),
    ],
)
@pytest.mark.case(120.1, "a text message, and close codes 1000, 1001, 1002 and 1011")
async def test_what_ends_the_websocket(
    implementation: Implementation,
    role: str,
    command: str,
    error: str | None,
    leave_out: LeaveOut,
) -> None:
    async with linked(implementation, role, "ws") as link:
        await link.session.ping()
        try:
            await link.call(command)
        except PeerError as exc:
            assert str(exc) == "unsupported"
            leave_out("only the Go and JavaScript programs can break these rules")
        with trio.fail_after(20):
            await link.session.wait_closed()
        if error is None:
            assert not isinstance(link.session.error, SessionLost)  # nothing was open: in order
        else:
            assert isinstance(link.session.error, SessionLost)
            assert error in str(link.session.error)
