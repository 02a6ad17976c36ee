"""What a peer sends costs work by its bytes, however they are cut; nothing is held per piece."""

from __future__ import annotations

import sys
import tracemalloc
from contextlib import contextmanager

import pytest
import trio
import trio.testing
import wsproto
from wsproto.frame_protocol import Opcode

from tunnelmux.socketio.cookies import CookieJar
from tunnelmux.socketio.engine_packets import MESSAGE, EnginePacket, Version3, Version4
from tunnelmux.socketio.packets import Assembler
from tunnelmux.socketio.polling import Polling
from tunnelmux.socketio.websocket import WebSocket


class Steps:
    """Calls of functions, those written in C included."""

    def __init__(self):
        self.calls = 0

    def note(self, frame, event, argument):
        self.calls += event in ("call", "c_call")


@contextmanager
def counted():
    steps = Steps()
    before = sys.getprofile()
    sys.setprofile(steps.note)
    try:
        yield steps
    finally:
        sys.setprofile(before)


def frames(pieces, opcode):
    """A message of a server as one frame for each piece."""
    made = bytearray()
    for number, piece in enumerate(pieces):
        first = opcode if number == 0 else Opcode.CONTINUATION
        is_last = number == len(pieces) - 1
        made += bytes([(0x80 if is_last else 0) | first, len(piece)]) + piece
    return bytes(made)


def websocket(data):
    """A WebSocket whose peer sends these bytes."""
    ours, _ = trio.testing.memory_stream_pair()
    ours.receive_stream.put_data(data)
    shaken = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    return WebSocket(ours, shaken, 10**6)


async def calls_for_frames(count):
    socket = websocket(frames([b"x"] * count, Opcode.BINARY))
    with counted() as steps:
        assert await socket.receive() == b"x" * count
    return steps.calls


async def test_a_message_in_four_times_as_many_frames_costs_four_times_as_much():
    assert await calls_for_frames(8000) < 4.2 * await calls_for_frames(2000)


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
@pytest.mark.parametrize("piece", [b"", b"x"])
async def test_a_frame_leaves_nothing_behind_but_its_bytes(opcode, piece):
    socket = websocket(frames([piece] * 10_000, opcode))
    tracemalloc.start()
    try:
        message = await socket.receive()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message) == 10_000 * len(piece)
    assert peak < 200_000


def calls_for_packets(codec, count):
    body = codec.encode_payload([EnginePacket(MESSAGE, '2["a"]')] * count)
    with counted() as steps:
        assert len(codec.decode_payload(body, count)) == count
    return steps.calls


@pytest.mark.parametrize("codec", [Version4(), Version3()], ids=["version 4", "version 3"])
def test_a_payload_of_four_times_as_many_packets_costs_four_times_as_much(codec):
    assert calls_for_packets(codec, 4000) < 4.2 * calls_for_packets(codec, 1000)


def test_a_binary_payload_of_four_times_as_many_packets_costs_four_times_as_much():
    def calls(count):
        with counted() as steps:
            assert len(Version3().decode_payload(b"\x01\x02\xff\x04x" * count, count)) == count
        return steps.calls

    assert calls(4000) < 4.2 * calls(1000)


def test_a_packet_with_four_times_as_many_attachments_costs_four_times_as_much():
    def calls(count):
        assembler = Assembler(10**6, 4)
        holders = ",".join(f'{{"_placeholder":true,"num":{number}}}' for number in range(count))
        with counted() as steps:
            assembler.feed(f'5{count}-["a",{holders}]')
            packets = [assembler.feed(b"x") for _ in range(count)]
        assert packets[-1].data == ["a"] + [b"x"] * count
        return steps.calls

    assert calls(2000) < 4.2 * calls(500)


async def calls_for_body(size):
    """An answer to a poll whose body comes byte by byte."""
    ours, _ = trio.testing.memory_stream_pair()

    async def dial():
        return ours

    jar = CookieJar("h", "/", is_secure=False, most=1)
    polling = Polling(dial, "h", "http://h", 10**6, jar)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ours.receive_stream.put_data(head + b"1\r\nx\r\n" * size + b"0\r\n\r\n")
    with counted() as steps:
        assert await polling.get("/") == b"x" * size
    return steps.calls


async def test_a_body_in_four_times_as_many_chunks_costs_four_times_as_much():
    assert await calls_for_body(8000) < 4.2 * await calls_for_body(2000)
