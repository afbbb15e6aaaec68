"""Frames: what goes in comes out, however it is cut; what is malformed is refused, at once and for good."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.wire.frames import (
    DEPTH_MAX,
    HEADER_MAX,
    PAYLOAD_MAX,
    WIDTH_MAX,
    FrameDecoder,
    FrameError,
    encode,
    parse_header,
)

pytestmark = pytest.mark.unit

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | text
headers = st.dictionaries(
    text, scalars | st.lists(scalars, max_size=5) | st.dictionaries(text, scalars, max_size=4), min_size=1
)
frames = st.lists(st.tuples(headers, st.binary(max_size=300)), min_size=1, max_size=6)


def raw_frame(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


@given(frames, st.integers(1, 50))
@settings(deadline=None)
def test_what_is_encoded_is_decoded_whatever_the_chunks(given_frames, step):
    stream = b"".join(encode(header, payload) for header, payload in given_frames)
    decoder = FrameDecoder()
    got = []
    for at in range(0, len(stream), step):
        decoder.feed(stream[at : at + step])
        got += list(decoder)
    assert got == given_frames
    assert decoder.pending == 0


def test_a_stream_fed_byte_by_byte_gives_each_frame_with_its_last_byte():
    stream = encode({"a": 1}, b"xyz") + encode({"b": [1, "ä"]})
    decoder = FrameDecoder()
    seen = []
    for index in range(len(stream)):
        decoder.feed(stream[index : index + 1])
        seen += [(index, frame) for frame in decoder]
    assert [frame for _, frame in seen] == [({"a": 1}, b"xyz"), ({"b": [1, "ä"]}, b"")]
    assert seen[0][0] == len(encode({"a": 1}, b"xyz")) - 1


def test_trailing_bytes_wait_for_the_rest_of_their_frame():
    whole = encode({"a": 1}, b"payload")
    decoder = FrameDecoder()
    decoder.feed(whole + whole[:-1])
    assert len(list(decoder)) == 1
    assert decoder.pending == len(whole) - 1


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_arbitrary_bytes_give_frames_or_a_frame_error_and_nothing_else(junk):
    decoder = FrameDecoder()
    decoder.feed(junk)
    try:
        for header, payload in decoder:
            assert isinstance(header, dict)
            assert isinstance(payload, bytes)
    except FrameError:
        pass


@pytest.mark.parametrize(
    "prefix",
    [
        struct.pack(">II", 0xFFFFFFFF, 0),
        struct.pack(">II", 2, 0xFFFFFFFF),
        struct.pack(">II", 0, 0),
        struct.pack(">II", HEADER_MAX + 1, 0),
        struct.pack(">II", 2, PAYLOAD_MAX + 1),
    ],
)
def test_a_length_out_of_range_is_refused_before_any_of_its_bytes_arrive(prefix):
    decoder = FrameDecoder()
    decoder.feed(prefix)
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_a_peer_may_be_given_a_lower_payload_limit():
    decoder = FrameDecoder(payload_max=10)
    decoder.feed(encode({"a": 1}, b"x" * 10))
    assert decoder.next_frame() == ({"a": 1}, b"x" * 10)
    decoder.feed(encode({"a": 1}, b"x" * 11))
    with pytest.raises(FrameError):
        decoder.next_frame()


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe",
        b"not json",
        b"[]",
        b'"text"',
        b"1",
        b'{"a":1',
        b'{"a":1}trailing',
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1.5}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":["\\ud800"]}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * (DEPTH_MAX) + b"]" * (DEPTH_MAX) + b"}",
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' * 12_000 + b"1" + b"}" * 12_000,
        b"[" * 60_000,
        json.dumps({"a": [0] * (WIDTH_MAX + 1)}).encode(),
        json.dumps({str(i): 0 for i in range(WIDTH_MAX + 1)}).encode(),
    ],
    ids=lambda header: repr(header[:24]),
)
def test_a_header_that_is_not_strict_json_is_refused(header):
    with pytest.raises(FrameError):
        parse_header(header)
    decoder = FrameDecoder()
    decoder.feed(raw_frame(header))
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_nesting_a_hundred_thousand_deep_is_refused_by_its_length_alone():
    decoder = FrameDecoder()
    decoder.feed(raw_frame(b"[" * 100_000 + b"]" * 100_000))
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_the_deepest_and_widest_legal_headers_pass():
    nested: object = 1
    for _ in range(DEPTH_MAX - 1):
        nested = [nested]
    assert parse_header(json.dumps({"a": nested}).encode()) == {"a": nested}
    assert len(parse_header(json.dumps({"a": [0] * WIDTH_MAX}).encode())["a"]) == WIDTH_MAX


@pytest.mark.parametrize("header", [{"a": "\ud800"}, {"a": "x" * (HEADER_MAX + 1)}])
def test_the_encoder_refuses_what_a_decoder_would(header):
    with pytest.raises(FrameError):
        encode(header)
    with pytest.raises(FrameError):
        encode({"a": 1}, bytes(PAYLOAD_MAX + 1))


def test_the_encoder_refuses_floats_that_are_not_numbers():
    with pytest.raises(ValueError, match="JSON"):
        encode({"a": float("nan")})
