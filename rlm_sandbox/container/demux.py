"""Splits the engine's attach stream into stdout and stderr, as a pure state machine.

Without a terminal the engine sends ``u8 stream, 3 zero bytes, u32 length, bytes``. Chunks of the connection are not chunks of the
stream, and neither is a message of the guest: what comes out is bytes, in order, as soon as they are there.
"""

from __future__ import annotations

from rlm_sandbox.errors import ProtocolError

STDIN, STDOUT, STDERR, SYSTEM = 0, 1, 2, 3
_HEADER = 8


class Demuxer:
    """Feed it what arrived; it returns the pieces, without waiting for the end of a record."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._stream = STDOUT
        self._left = 0

    @property
    def mid_record(self) -> bool:
        """Whether the stream would be cut if it ended here."""
        return bool(self._head) or self._left > 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return ``(stream, bytes)`` pieces in order. Raises :class:`ProtocolError` when this is not an attach stream."""
        pieces: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                pieces.append((self._stream, piece))
                self._left -= len(piece)
                at += len(piece)
                continue
            take = data[at : at + _HEADER - len(self._head)]
            self._head += take
            at += len(take)
            if len(self._head) == _HEADER:
                self._begin()
        return pieces

    def _begin(self) -> None:
        stream, zeros = self._head[0], self._head[1:4]
        if stream > SYSTEM or any(zeros):
            raise ProtocolError(
                "the engine's attach stream is not framed", hint="a proxy between this host and the engine may alter it"
            )
        self._stream = stream
        self._left = int.from_bytes(self._head[4:8], "big")
        self._head.clear()
