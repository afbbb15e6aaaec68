"""Frames: ``u32 header length, u32 payload length, header JSON, payload bytes``, big-endian.

The header is small and strictly parsed; everything bulky (prompts, answers, output, finals) is payload and
never meets a JSON parser. Bytes go in by :meth:`FrameDecoder.feed`, frames come out by iteration; the decoder
never holds more than one frame beyond what it was fed, and refuses a length before any of its bytes arrive.
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

HEADER_MAX = 64 * 1024
"""Bytes. The largest legal header is a result with 200 variables of about 200 bytes: 40 KiB."""

PAYLOAD_MAX = 16 * 1024 * 1024
"""Bytes. One prompt or answer; longer finals are cut into several frames. Policy refuses prompts well below this."""

DEPTH_MAX = 6
"""Nesting of a header. The deepest legal one is 3 (object, list, object)."""

WIDTH_MAX = 512
"""Members of one object or list in a header. The widest legal list has 200 entries."""

_PREFIX = struct.Struct(">II")
_OPEN = frozenset(b"[{")
_CLOSE = frozenset(b"]}")
_QUOTE = ord('"')
_BACKSLASH = ord("\\")


class FrameError(ValueError):
    """The peer sent bytes that are not a frame. The stream cannot be resynchronised: end it."""


Header = dict[str, object]


def encode(header: Header, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame. Raises ``FrameError`` for what a decoder would refuse."""
    text = _ENCODER.encode(header)
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as exc:
        msg = "header holds a lone surrogate"
        raise FrameError(msg) from exc
    if len(raw) > HEADER_MAX or len(payload) > PAYLOAD_MAX:
        msg = f"frame too large: header {len(raw)}, payload {len(payload)} bytes"
        raise FrameError(msg)
    return _PREFIX.pack(len(raw), len(payload)) + raw + payload


def parse_header(raw: bytes) -> Header:
    """Parse strictly: UTF-8, one object, bounded depth and width, no duplicate keys, no NaN, no surrogates."""
    value: object
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        msg = f"header is not strict JSON: {type(exc).__name__}"
        raise FrameError(msg) from exc
    if not isinstance(value, dict):
        msg = "header is not an object"
        raise FrameError(msg)
    _check_tree(value)
    return value


def _object(pairs: list[tuple[str, object]]) -> Header:
    result = dict(pairs)
    if len(result) != len(pairs):
        msg = "duplicate key"
        raise FrameError(msg)
    return result


def _refuse_constant(_: str) -> NoReturn:
    msg = "numbers in a header are integers"
    raise FrameError(msg)


def _check_tree(value: dict[str, object] | list[object], depth: int = 1) -> None:
    """Bound what was parsed. The parser itself is safe on 64 KiB: past its own depth it raises RecursionError."""
    if depth > DEPTH_MAX or len(value) > WIDTH_MAX:
        msg = f"header nests deeper than {DEPTH_MAX} or is wider than {WIDTH_MAX}"
        raise FrameError(msg)
    for items in (value, value.values()) if isinstance(value, dict) else (value,):
        for item in items:
            if isinstance(item, str):
                if not item.isascii():
                    _check_text(item)
            elif isinstance(item, (dict, list)):
                _check_tree(item, depth + 1)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        msg = "header holds a lone surrogate"
        raise FrameError(msg) from exc


# Made once: json.loads and json.dumps with options would make one each time, which is most of what a frame costs.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_refuse_constant)


class FrameDecoder:
    """Turns a byte stream into ``(header, payload)`` pairs, whatever the chunking.

    ``payload_max`` may lower the limit for a peer that has no business sending bulk.
    """

    def __init__(self, *, payload_max: int = PAYLOAD_MAX) -> None:
        self._payload_max = payload_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes as they arrived."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame; not zero at end of stream means it was cut."""
        return len(self._buffer)

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        while (frame := self.next_frame()) is not None:
            yield frame

    def next_frame(self) -> tuple[Header, bytes] | None:
        """Return the next whole frame, or ``None`` when more bytes are needed."""
        if len(self._buffer) < _PREFIX.size:
            return None
        header_len, payload_len = _PREFIX.unpack_from(self._buffer)
        if not 0 < header_len <= HEADER_MAX or payload_len > self._payload_max:
            msg = f"frame lengths out of range: header {header_len}, payload {payload_len}"
            raise FrameError(msg)
        end = _PREFIX.size + header_len + payload_len
        if len(self._buffer) < end:
            return None
        view = memoryview(self._buffer)
        raw = bytes(view[_PREFIX.size : _PREFIX.size + header_len])
        payload = bytes(view[_PREFIX.size + header_len : end])
        view.release()
        del self._buffer[:end]
        return parse_header(raw), payload
