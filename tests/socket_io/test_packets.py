"""The packets: what goes out comes in, and whatever comes in is a packet or a BadPacket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.socketio.engine_packets import (
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    BadPacket,
    EnginePacket,
    Version3,
    Version4,
    encoded_size,
)
from tunnelmux.socketio.packets import (
    ACK,
    CONNECT,
    EVENT,
    Assembler,
    SocketPacket,
    encode_socket_packet,
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


codecs = st.sampled_from([Version4(), Version3(), Version3(text_only=True)])


def assembled(messages):
    assembler = Assembler(100_000, 4)
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


@given(codecs, st.lists(messages, min_size=1, max_size=5))
def test_a_payload_comes_as_it_went(codec, packets):
    assert codec.decode_payload(codec.encode_payload(packets), 1000) == packets


@given(codecs, messages)
def test_a_packet_comes_as_it_went(codec, packet):
    assert codec.decode_packet(codec.encode_packet(packet)) == packet


@given(codecs, st.binary(max_size=200))
def test_a_packet_is_never_larger_than_was_reckoned(codec, data):
    packet = EnginePacket(MESSAGE, data)
    if not isinstance(codec.encode_packet(packet), str):
        assert len(codec.encode_packet(packet)) <= encoded_size(packet, polling=False)
    assert len(codec.encode_payload([packet])) <= encoded_size(packet, polling=True)


@given(codecs, st.text(max_size=40) | hostile | st.binary(max_size=40))
def test_whatever_comes_is_a_packet_or_refused(codec, encoded):
    try:
        packet = codec.decode_packet(encoded)
    except BadPacket:
        return
    assert packet.kind in range(7)


@given(st.sampled_from([3, 4]), st.lists(hostile | st.binary(max_size=5), max_size=5))
def test_whatever_is_assembled_is_a_packet_or_refused(version, messages):
    assembler = Assembler(1000, version)
    for message in messages:
        try:
            packet = assembler.feed(message)
        except BadPacket:
            return
        if packet is not None and packet.kind == EVENT:
            assert isinstance(packet.data[0], str)
        if packet is not None and packet.kind == CONNECT:
            assert packet.data is None or isinstance(packet.data, dict)


lengths = st.sampled_from(["", "1:", "2:", "9:", "0:", "\x00\x01\xff", "\x01\x02\xff"])
hostile_bodies = st.lists(st.builds("{}{}".format, lengths, hostile), max_size=4).map(
    lambda parts: "".join(parts).encode("latin-1")
)


@given(codecs, hostile_bodies | st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_whatever_is_polled_is_a_payload_or_refused(codec, payload):
    try:
        packets = codec.decode_payload(payload, 10)
    except BadPacket:
        return
    assert len(packets) <= 10


# -- Engine.IO 3 ----------------------------------------------------------------------------

# As engine.io-parser 2.2.1 writes them.
THEIR_PAYLOADS = [
    (b"2:40", [(MESSAGE, "0")]),
    (b"1:27:4abc\xc3\xa4d\xe2\x82\xac1:6", [(PING, ""), (MESSAGE, "abc\xe4d\u20ac"), (NOOP, "")]),
    # One character that JavaScript counts as two.
    ("4:4😀x3:4😀2:4y".encode(), [(MESSAGE, "😀x"), (MESSAGE, "😀"), (MESSAGE, "y")]),
    (b"10:b4AAECAwQF1:2", [(MESSAGE, b"\x00\x01\x02\x03\x04\x05"), (PING, "")]),
    (
        b"\x00\x03\xff4\xc3\xa4\x01\x04\xff\x04\x00\x01\xff",
        [(MESSAGE, "ä"), (MESSAGE, b"\x00\x01\xff")],
    ),
    (b"\x01\x01\x02\xff\x04" + bytes(11), [(MESSAGE, bytes(11))]),
    (b'11:0{"sid":"s"}2:40'.replace(b"11", b"12"), [(OPEN, {"sid": "s"}), (MESSAGE, "0")]),
]


@pytest.mark.parametrize(("body", "packets"), THEIR_PAYLOADS)
def test_payloads_of_version_3_have_each_packets_length_before_it(body, packets):
    assert Version3().decode_payload(body, 10) == packets


BROKEN_PAYLOADS = [
    b"",
    b"0:",
    b":4",
    b"4",
    b"2:4",
    b"-1:4",
    b"+1:4",
    b"1 :2",
    b"\xd9\xa1:2",  # a digit of another script
    b"1:2x",
    b"1:7",
    b"2:b2",
    b"4:b4!!",
    b"3:4\xf0\x9f\x98\x801:2" + b"2:4\xf0\x9f\x98\x80",  # cut within a pair
    b"1111111111:4",
    b"2:4\xff",
    b"5:0[1]",
    b"4:0[1]",
    b"\x00\xff4",
    b"\x00\x0a\xff4",
    b"\x00\x01\x014",
    b"\x00\x02\xff4",
    b"\x02\x01\xff4",
    b"\x01\x01\xff\x02",
    b"\x00\x02\xff4\xff",
    b"d=2:40",
    b"40\x1e2",
]


@pytest.mark.parametrize("body", BROKEN_PAYLOADS)
def test_a_broken_payload_of_version_3_is_refused(body):
    with pytest.raises(BadPacket):
        Version3().decode_payload(body, 10)


def test_a_payload_of_version_3_has_so_many_packets_and_no_more():
    assert len(Version3().decode_payload(b"1:2" * 10, 10)) == 10
    with pytest.raises(BadPacket, match="more than 10 packets"):
        Version3().decode_payload(b"1:2" * 11 + b"broken", 10)


def test_what_is_written_in_version_3_is_text():
    packets = [EnginePacket(MESSAGE, '2["a"]'), EnginePacket(MESSAGE, b"\x00\xff")]
    assert Version3().encode_payload(packets) == b'7:42["a"]6:b4AP8='
    assert Version3().encode_packet(packets[1]) == b"\x04\x00\xff"
    assert Version3(text_only=True).encode_packet(packets[1]) == "b4AP8="


@pytest.mark.parametrize(
    ("message", "packet"),
    [
        ("0", SocketPacket(CONNECT)),
        ("0/proxy", SocketPacket(CONNECT, "/proxy")),
        ("0/proxy?a=b%2C&c=d,", SocketPacket(CONNECT, "/proxy", {"a": "b,", "c": "d"})),
        ("0/?a=b", SocketPacket(CONNECT, "/", {"a": "b"})),
    ],
)
def test_who_joins_in_version_3_brings_a_query(message, packet):
    assert Assembler(1000, 3).feed(message) == packet


@pytest.mark.parametrize("message", ["0proxy", "0/?" + "&".join(["a=1"] * 65)])
def test_a_joining_of_version_3_that_is_none_is_refused(message):
    with pytest.raises(BadPacket):
        Assembler(1000, 3).feed(message)


def test_attachments_are_bounded_together():
    assembler = Assembler(1000, 4)
    assert assembler.feed('52-["a",{"_placeholder":true,"num":0}]') is None
    assert assembler.feed(b"x" * 600) is None
    with pytest.raises(BadPacket, match="over 1000 bytes"):
        assembler.feed(b"x" * 600)
    with pytest.raises(BadPacket, match="too many attachments"):
        Assembler(1000, 4).feed('520-["a"]')


def test_a_depth_that_no_stack_holds_is_refused():
    with pytest.raises(BadPacket):
        Assembler(10**6, 4).feed("2" + "[" * 200_000)
