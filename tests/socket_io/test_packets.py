"""The packets: what goes out comes in, and whatever comes in is a packet or a BadPacket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.socketio.packets import (
    ACK,
    CONNECT,
    EVENT,
    MESSAGE,
    Assembler,
    BadPacket,
    EnginePacket,
    SocketPacket,
    decode_packet,
    decode_payload,
    encode_packet,
    encode_payload,
    encode_socket_packet,
    encoded_size,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts | st.binary(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts.filter(lambda key: key != "_placeholder"), inner, max_size=4)
    ),
    max_leaves=10,
)
namespaces = st.sampled_from(["/", "/proxy"])
ids = st.none() | st.integers(0, 2**40)

prefixes = st.sampled_from(
    ["", "0", "1", "2", "2/proxy,", "3", "31", "4", "51-", "52-/proxy,1", "61-", "7"]
)
hostile = st.builds("{}{}".format, prefixes, st.text('[]{}"0123456789,:-/abn\\u_', max_size=30))


def assembled(messages):
    assembler = Assembler(100_000)
    *first, last = messages
    assert [assembler.feed(message) for message in first] == [None] * len(first)
    return assembler.feed(last)


@given(namespaces, texts, st.lists(values, max_size=3), ids)
def test_an_event_comes_as_it_went(namespace, name, args, number):
    packet = SocketPacket(EVENT, namespace, [name, *args], number)
    assert assembled(encode_socket_packet(packet)) == packet


@given(namespaces, st.lists(values, max_size=3), st.integers(0, 2**40))
def test_an_acknowledgement_comes_as_it_went(namespace, args, number):
    packet = SocketPacket(ACK, namespace, args, number)
    assert assembled(encode_socket_packet(packet)) == packet


socket_texts = texts.filter(lambda text: "\x1e" not in text).map("2".__add__)
messages = st.builds(EnginePacket, st.just(MESSAGE), socket_texts | st.binary(max_size=20))


@given(st.lists(messages, min_size=1, max_size=5))
def test_a_payload_comes_as_it_went(packets):
    assert decode_payload(encode_payload(packets), 1000) == packets


@given(st.binary(max_size=200))
def test_a_packet_is_never_larger_than_was_reckoned(data):
    packet = EnginePacket(MESSAGE, data)
    assert len(encode_packet(packet)) <= encoded_size(packet, polling=False)
    assert len(encode_payload([packet])) <= encoded_size(packet, polling=True)


@given(st.text(max_size=40) | hostile | st.binary(max_size=40))
def test_whatever_comes_is_a_packet_or_refused(encoded):
    try:
        packet = decode_packet(encoded)
    except BadPacket:
        return
    assert packet.kind in range(7)


@given(st.lists(hostile | st.binary(max_size=5), max_size=5))
def test_whatever_is_assembled_is_a_packet_or_refused(messages):
    assembler = Assembler(1000)
    for message in messages:
        try:
            packet = assembler.feed(message)
        except BadPacket:
            return
        if packet is not None and packet.kind == EVENT:
            assert isinstance(packet.data[0], str)
        if packet is not None and packet.kind == CONNECT:
            assert packet.data is None or isinstance(packet.data, dict)


@given(hostile)
def test_whatever_is_polled_is_a_payload_or_refused(payload):
    try:
        decode_payload(payload, 10)
    except BadPacket:
        return


def test_attachments_are_bounded_together():
    assembler = Assembler(1000)
    assert assembler.feed('52-["a",{"_placeholder":true,"num":0}]') is None
    assert assembler.feed(b"x" * 600) is None
    with pytest.raises(BadPacket, match="over 1000 bytes"):
        assembler.feed(b"x" * 600)
    with pytest.raises(BadPacket, match="too many attachments"):
        Assembler(1000).feed('520-["a"]')


def test_a_depth_that_no_stack_holds_is_refused():
    with pytest.raises(BadPacket):
        Assembler(10**6).feed("2" + "[" * 200_000)
