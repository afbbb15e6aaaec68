import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.container.demux import STDERR, STDOUT, Demuxer
from rlm_sandbox.errors import ProtocolError

pytestmark = pytest.mark.unit

records = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=200)), max_size=20)


def encode(items):
    return b"".join(struct.pack(">BxxxL", stream, len(data)) + data for stream, data in items)


def joined(pieces, stream):
    return b"".join(data for kind, data in pieces if kind == stream)


@given(records, st.data())
def test_any_chunking_gives_the_same_bytes_in_order(items, data):
    raw = encode(items)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    demuxer, pieces = Demuxer(), []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        pieces += demuxer.feed(raw[start:stop])
    for stream in (STDOUT, STDERR):
        assert joined(pieces, stream) == joined(items, stream)
    assert not demuxer.mid_record


@given(records)
def test_byte_by_byte_is_no_different(items):
    demuxer = Demuxer()
    pieces = [piece for byte in encode(items) for piece in demuxer.feed(bytes([byte]))]
    assert joined(pieces, STDOUT) == joined(items, STDOUT)


@given(st.binary(min_size=1, max_size=400))
def test_arbitrary_bytes_are_parsed_or_refused_and_never_grow(data):
    demuxer = Demuxer()
    try:
        pieces = demuxer.feed(data)
    except ProtocolError:
        return
    assert sum(len(piece) for _, piece in pieces) <= len(data)


def test_a_length_of_four_gigabytes_allocates_nothing():
    demuxer = Demuxer()
    assert demuxer.feed(struct.pack(">BxxxL", STDOUT, 0xFFFFFFFF) + b"abc") == [(STDOUT, b"abc")]
    assert demuxer.mid_record


@pytest.mark.parametrize("head", [b"\x04\0\0\0\0\0\0\1", b"\1\1\0\0\0\0\0\1", b"HTTP/1.1"])
def test_a_stream_without_frames_is_refused(head):
    with pytest.raises(ProtocolError, match="not framed"):
        Demuxer().feed(head)
