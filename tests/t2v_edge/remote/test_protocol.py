"""The live protocol's messages and frame header: round trips, limits, and what garbage makes of them."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from t2v_edge.errors import ProtocolError
from t2v_edge.remote import protocol
from t2v_edge.remote.frame_header import HEADER_BYTES, FrameHeader
from t2v_edge.remote.protocol import (
    ACTIONS,
    CLOSE_CODES,
    FORMATS,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SEED,
    MAX_SIDE,
    MAX_TEXT,
    MAX_WHOLE,
    Bye,
    Caption,
    Control,
    Error,
    Hello,
    Settings,
    Showing,
    State,
    Stats,
    StatsRequest,
    Welcome,
    negotiate,
    read_client,
    read_server,
    write,
)

DOCUMENT = Path(__file__).parents[3] / "docs/protocol.md"

texts = st.text(st.characters(codec="utf-8"), max_size=200)
names = st.text(st.characters(codec="utf-8"), max_size=64)
wholes = st.integers(0, MAX_WHOLE)
seconds = st.none() | st.floats(0, 1e9)
rates = st.builds(Fraction, st.integers(1, 10**6), st.integers(1, 10**6)).filter(lambda rate: 1 <= rate <= 240)
settings = st.builds(
    Settings,
    st.none() | rates,
    st.none() | st.tuples(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE)),
    st.none() | st.integers(0, MAX_SEED),
    st.none() | st.sampled_from(FORMATS),
    st.none() | st.integers(1, 100),
)
from_client = st.one_of(
    st.builds(Hello, st.lists(st.integers(1, 65535), min_size=1, max_size=16).map(tuple), st.none() | texts, settings),
    st.builds(Caption, wholes, wholes, texts, st.booleans(), seconds, seconds),
    st.builds(Control, st.sampled_from(ACTIONS), settings),
    st.builds(StatsRequest),
    st.builds(Bye, texts),
)
from_server = st.one_of(
    st.builds(Welcome, st.integers(1, 65535), names, texts, rates, settings),
    st.builds(Showing, wholes, wholes, wholes, texts),
    st.builds(State, st.booleans(), wholes, settings),
    st.builds(
        Stats,
        st.floats(0, 1e9),
        st.floats(0, 1e9),
        wholes,
        wholes,
        wholes,
        wholes,
        seconds,
        seconds,
        st.none() | st.integers(1, 240),
    ),
    st.builds(Error, names, texts, texts, st.booleans()),
    st.builds(Bye, texts),
)
headers = st.builds(
    FrameHeader,
    st.sampled_from(FORMATS[1:]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    wholes,
    st.builds(Fraction, st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)),
    st.integers(1, MAX_SIDE),
    st.integers(1, MAX_SIDE),
    st.integers(1, 5000),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(("30000/1001", "1/0", "raw", "set", "hello", "\ud800", 10**70))
)
keys = st.sampled_from(
    (
        "type",
        "versions",
        "token",
        "fps",
        "size",
        "seed",
        "format",
        "quality",
        "segment",
        "revision",
        "text",
        "final",
        "start",
        "end",
        "action",
        "reason",
        "version",
        "session",
        "bundle",
        "base_fps",
        "generation",
        "paused",
        "code",
    )
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5))
objects = st.dictionaries(keys, values, max_size=12)
types = st.sampled_from(("hello", "caption", "control", "stats", "bye", "welcome", "showing", "state", "error"))
RAW = FrameHeader("raw", 3, 70, 69, Fraction(1, 30), 4, 2, 24)


def taken_or_refused(read, *data):
    """What was read, or None where it was refused as the protocol says."""
    try:
        return read(*data)
    except ProtocolError as error:
        assert re.fullmatch("[a-z_]+", error.code)
        assert error.message and error.remedy
        assert Error.of(error).fatal == (error.code in CLOSE_CODES)
        written = write(Error.of(error))
        assert read_server(written) == Error.of(error), "a refusal can always be sent"
        assert len(written.encode()) <= MAX_MESSAGE_BYTES
        return None


@given(from_client)
def test_what_a_client_says_arrives(message):
    assert read_client(write(message)) == message


@given(from_server)
@example(Welcome(1, "", "", Fraction(10**6, 5377), Settings()))
def test_what_a_server_says_arrives(message):
    assert read_server(write(message)) == message


@given(st.text() | st.binary())
def test_arbitrary_text_and_bytes_are_refused_and_raise_nothing_else(data):
    assert taken_or_refused(read_client, data) is None
    assert taken_or_refused(read_server, data) is None


@given(types, objects)
def test_messages_of_arbitrary_values_are_taken_or_refused_and_raise_nothing_else(kind, content):
    data = json.dumps({**content, "type": kind})
    taken_or_refused(read_client, data)
    message = taken_or_refused(read_server, data)
    if message is not None:
        assert read_server(write(message)) == message


@given(from_client | from_server, st.data())
def test_messages_cut_or_changed_anywhere_raise_nothing_else(message, data):
    text = write(message)
    at = data.draw(st.integers(0, len(text) - 1))
    for changed in (text[:at], text[:at] + data.draw(st.characters()) + text[at + 1 :]):
        taken_or_refused(read_client, changed)
        taken_or_refused(read_server, changed)


@pytest.mark.parametrize(
    "content, code",
    [
        ("[" * MAX_MESSAGE_BYTES, "bad_message"),
        ('{"type":"hello","versions":' + "[" * 9 + "]" * 9 + "}", "bad_message"),
        ('{"type":"caption","segment":' + "9" * 16000 + "}", "bad_message"),
        ('{"type":"caption","segment":1e999}', "bad_message"),
        ('{"type":"caption","segment":NaN}', "bad_message"),
        ('{"type":"bye","type":"bye"}', "bad_message"),
        ("{" + ",".join(f'"{i}":0' for i in range(1500)) + ',"0":1}', "bad_message"),
        ("[]", "bad_message"),
        ('"hello"', "bad_message"),
        ("null", "bad_message"),
        ("{}", "unknown_type"),
        ('{"type":["hello"]}', "unknown_type"),
        ('{"type":"welcome"}', "unknown_type"),
        ('{"type":"bye","reason":"' + "x" * MAX_MESSAGE_BYTES + '"}', "too_large"),
        ('{"type":"bye","reason":"' + "字" * (MAX_MESSAGE_BYTES // 3) + '"}', "too_large"),
        (b'{"type":"bye"}', "binary"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_malformed_message_is_refused_by_its_code(content, code):
    with pytest.raises(ProtocolError) as refusal:
        read_client(content)
    assert refusal.value.code == code


GOOD = {
    "caption": {"segment": 1, "revision": 0, "text": "a person"},
    "hello": {"versions": [1]},
    "control": {"action": "set"},
}


@pytest.mark.parametrize(
    "kind, name, value",
    [
        ("caption", "segment", -1),
        ("caption", "segment", 1.0),
        ("caption", "segment", True),
        ("caption", "segment", "1"),
        ("caption", "segment", MAX_WHOLE + 1),
        ("caption", "revision", None),
        ("caption", "text", None),
        ("caption", "text", 7),
        ("caption", "text", "x" * (MAX_TEXT + 1)),
        ("caption", "text", "\ud800"),
        ("caption", "final", 1),
        ("caption", "start", -0.1),
        ("caption", "end", 2e9),
        ("caption", "end", False),
        ("hello", "versions", []),
        ("hello", "versions", [0]),
        ("hello", "versions", 1),
        ("hello", "versions", [1] * 17),
        ("hello", "versions", [True]),
        ("hello", "token", 5),
        ("hello", "token", "x" * 513),
        ("control", "action", "stop"),
        ("control", "action", ["set"]),
        ("control", "fps", 0),
        ("control", "fps", 241),
        ("control", "fps", "1/0"),
        ("control", "fps", "30"),
        ("control", "fps", "1e9/1"),
        ("control", "fps", True),
        ("control", "fps", 29.970029970029973),
        ("control", "fps", "999999/1"),
        ("control", "size", [0, 8]),
        ("control", "size", [8]),
        ("control", "size", [8, 8.5]),
        ("control", "size", [8, MAX_SIDE + 1]),
        ("control", "size", "8x8"),
        ("control", "seed", -1),
        ("control", "seed", MAX_SEED + 1),
        ("control", "format", "png"),
        ("control", "format", {}),
        ("control", "quality", 0),
        ("control", "quality", 101),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(kind, name, value):
    read_client(json.dumps({"type": kind, **GOOD[kind]}))
    with pytest.raises(ProtocolError, match=f"^{name} of a {kind} message") as refusal:
        read_client(json.dumps({"type": kind, **GOOD[kind], name: value}))
    assert refusal.value.code == "bad_value" and not Error.of(refusal.value).fatal


def test_keys_that_are_not_known_are_ignored():
    assert read_client('{"type":"bye","reason":"r","since":{"x":[1]}}') == Bye("r")


def test_rates_are_exact():
    for value, rate in ((30, Fraction(30)), (29.97, Fraction(2997, 100)), ("30000/1001", Fraction(30000, 1001))):
        message = read_client(json.dumps({"type": "control", "action": "set", "fps": value}))
        assert message.settings.fps == rate
        assert read_client(write(message)) == message


def test_the_highest_shared_version_is_spoken(monkeypatch):
    monkeypatch.setattr(protocol, "VERSIONS", (1, 2, 3))
    assert negotiate((7, 2, 1)) == 2
    with pytest.raises(ProtocolError, match="speaks versions 4, 9, the server 1, 2, 3") as refusal:
        negotiate((9, 4))
    assert refusal.value.code == "version" and Error.of(refusal.value).fatal


@given(headers, st.binary(max_size=40))
def test_a_header_arrives_with_its_payload(header, extra):
    payload = bytes(header.payload_bytes)
    read, view = FrameHeader.unpack(header.pack() + payload)
    assert read == header and view == payload and len(header.pack()) == HEADER_BYTES
    if extra:
        assert taken_or_refused(FrameHeader.unpack, header.pack() + payload + extra) is None


def test_a_longer_header_of_a_later_minor_version_is_skipped():
    packed = bytearray(RAW.pack())
    struct.pack_into("<H", packed, 6, HEADER_BYTES + 8)
    assert FrameHeader.unpack(bytes(packed) + b"new here" + bytes(range(24)))[1] == bytes(range(24))


@given(st.binary(max_size=200))
def test_arbitrary_binary_messages_are_refused_and_raise_nothing_else(data):
    assert taken_or_refused(FrameHeader.unpack, data) is None
    taken_or_refused(FrameHeader.unpack, b"T2VF\x01" + data)
    taken_or_refused(FrameHeader.unpack, RAW.pack()[:8] + data)


@given(st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_header_with_any_bit_flipped_is_refused_or_says_something_else(bit):
    message = bytearray(RAW.pack() + bytes(24))
    message[bit // 8] ^= 1 << bit % 8
    result = taken_or_refused(FrameHeader.unpack, bytes(message))
    assert result is None or (result[0] != RAW and result[0].payload_bytes == 24)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": -1},
        {"sequence": 2**32},
        {"pts": MAX_WHOLE + 1},
        {"time_base": Fraction(0)},
        {"width": 0},
        {"height": MAX_SIDE + 1},
        {"payload_bytes": 23},
        {"format": "png"},
        {"format": "jpeg", "payload_bytes": 0},
        {"format": "jpeg", "payload_bytes": MAX_PAYLOAD_BYTES + 1},
    ],
    ids=str,
)
def test_a_frame_out_of_range_is_refused(change):
    with pytest.raises(ProtocolError) as refusal:
        replace(RAW, **change)
    assert refusal.value.code == "bad_frame"


def test_the_header_is_laid_out_as_documented():
    rows = re.findall(r"^\| (\d+) \| (\w+)(?:\[(\d+)\])? \| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    codes = {"char": "s", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"}
    values = {}
    for offset, kind, many, name in rows:
        (values[name],) = struct.unpack_from(f"<{many}{codes[kind]}", RAW.pack(), int(offset))
    assert values == {
        "magic": b"T2VF",
        "version": 1,
        "format": 0,
        "header_bytes": 40,
        "generation": 3,
        "sequence": 70,
        "pts": 69,
        "time_base_num": 1,
        "time_base_den": 30,
        "width": 4,
        "height": 2,
        "payload_bytes": 24,
    }


def test_every_example_in_the_document_is_a_message():
    lines = re.findall(r"^ {4}([<>]) (\{.*\})$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    refusals = []
    for direction, text in lines:
        try:
            assert json.loads(write((read_client if direction == ">" else read_server)(text))) == json.loads(text)
        except ProtocolError as error:
            refusals.append(("<", write(Error.of(error))))
    assert refusals == [line for line in lines if '"error"' in line[1]]
    shown = {json.loads(text)["type"] for _, text in lines}
    assert shown == {*protocol._FROM_CLIENT, *protocol._FROM_SERVER}


def test_every_error_code_is_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    for code, close in CLOSE_CODES.items():
        assert f"| `{code}` | {close} |" in text
    assert all(f"| `{code}` | stays open |" in text for code in ("bad_value", "unknown_type", "caption"))
