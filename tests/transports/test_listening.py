"""Listening sockets, and who waits in front of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crowds import SILENT, many_files
from tunnelmux.config import Address
from tunnelmux.errors import ConfigError
from tunnelmux.transports.tcp import listening_socket


@pytest.fixture
def allowed_files() -> Iterator[None]:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    if most < 2 * SILENT:
        pytest.skip(f"this system lets {most} wait in front of a listener")
    with many_files():
        yield


@pytest.mark.usefixtures("allowed_files")
def test_behind_2000_that_wait_to_be_accepted_one_more_need_not_dial_again() -> None:
    """Where the queue is full, the kernel drops a SYN, which comes again after 1, 3 and 7 s."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening_socket("api.listen", Address("127.0.0.1", 0)))
        for _ in range(SILENT + 1):
            dialling = stack.enter_context(socket.socket())
            dialling.setblocking(False)
            dialling.connect_ex(listener.getsockname())
        answered = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                stack.enter_context(listener.accept()[0])
                answered += 1
        assert answered == SILENT + 1


def test_an_address_that_is_taken_is_named_with_its_setting() -> None:
    with listening_socket("gateway.listen", Address("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname())
        with pytest.raises(ConfigError, match=f"gateway.listen: cannot listen on {address} "):
            listening_socket("gateway.listen", address)
