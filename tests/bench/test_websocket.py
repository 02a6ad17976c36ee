"""The WebSocket echo of the benchmark: both of its ends, and what stops a wrong figure."""

from __future__ import annotations

import socket
import threading

import pytest
from bench.websocket import ACCEPTED, ANSWER, KEY, QUESTION, answer, take, upgrade

REQUEST = b"GET /websocket HTTP/1.1\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def test_a_request_is_accepted_and_each_whole_question_is_answered(pair):
    visitor, origin = pair
    held = bytearray()
    for piece in (REQUEST[:20], REQUEST[20:] + QUESTION + QUESTION[:9], QUESTION[9:]):
        visitor.sendall(piece)
        assert answer(origin, held)
    assert not held
    origin.close()
    assert b"".join(iter(lambda: visitor.recv(4096), b"")) == ACCEPTED + ANSWER + ANSWER


def test_an_origin_whose_visitor_has_gone_says_so(pair):
    visitor, origin = pair
    visitor.close()
    assert not answer(origin, bytearray())


def test_each_echo_counts_once_and_is_asked_for_again(pair):
    visitor, origin = pair
    held = bytearray()
    origin.sendall(ANSWER + ANSWER[:5])
    assert take(visitor, held) == 1
    origin.sendall(ANSWER[5:])
    assert take(visitor, held) == 1
    assert origin.recv(4096) == QUESTION + QUESTION


def test_another_answer_is_no_echo(pair):
    visitor, origin = pair
    origin.sendall(b"x" * len(ANSWER))
    with pytest.raises(ConnectionError, match="another answer"):
        take(visitor, bytearray())


def test_a_refusal_is_no_websocket(pair):
    visitor, origin = pair
    threading.Thread(target=origin.sendall, args=(b"HTTP/1.1 404 Not Found\r\n\r\n",)).start()
    with pytest.raises(ConnectionError, match="404"):
        upgrade(visitor, ())
