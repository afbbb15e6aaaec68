"""What the start of a session tells about a text: how it begins, how long it is. Decoded as the guest will decode it."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass

from rlm_sandbox.guest.encoding import MARK, detect

CHUNK = 1024 * 1024
BYTES_PER_CHAR = 4

_PROBE = 64 * 1024
"""Bytes searched for a NUL byte, which text does not have."""


@dataclass
class Facts:
    """``chars`` and ``newlines`` are None where the text was not read to its end. ``binary``: the first bytes hold a NUL.

    ``packed``: what it is that holds the text, where the first bytes say so.
    """

    prefix: str
    chars: int | None = None
    newlines: int | None = None
    binary: bool = False
    packed: str | None = None

    def warnings(self) -> list[str]:
        """Return what a user should know."""
        if self.packed:
            way = _READER.get(self.packed, "open_archive()")
            return [
                f"the input is a {self.packed}, not text: in a cell, {way} reads what is in it; for `run`, make it text first"
            ]
        if self.binary:
            return ["the input looks binary: bytes that are not UTF-8 read as U+FFFD"]
        return []


_PACKED = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip file",
    **{b"BZh%d" % level: "bzip2 file" for level in range(1, 10)},
    b"\xfd7zX": "xz file",
    b"\x28\xb5\x2f\xfd": "zst file",
    b"%PDF": "PDF",
}
"""What the first bytes say that a file is, of what a cell can open. None takes more than :data:`MARK` bytes to tell."""

_READER = {"PDF": "document_text() of the data image", "zip": "open_archive(), or document_text() of the data image,"}


def packed(head: bytes) -> str | None:
    """Return what kind of container of text begins like this, if it is one."""
    return next((kind for mark, kind in _PACKED.items() if head.startswith(mark)), None)


class Counter:
    """Counts characters and newlines of a text that comes in pieces; invalid bytes count as the guest reads them.

    ``encoding`` is set when the text begins with a mark of UTF-16 or UTF-32; ``utf8_bytes`` is then what the text takes in
    UTF-8, which is how the guest shows it.
    """

    def __init__(self, prefix_len: int) -> None:
        self._decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._prefix_len = prefix_len
        self._prefix: list[str] = []
        self._room = prefix_len
        self._seen = 0
        self._head: bytes | None = b""
        self.chars = 0
        self.newlines = 0
        self.binary = False
        self.packed: str | None = None
        self.encoding: str | None = None
        self.utf8_bytes = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Add a piece; ``final`` closes the text."""
        if self._head is not None:
            data = self._head + data
            if len(data) < MARK and not final:
                self._head = data
                return
            self._head = None
            self.encoding = detect(data)
            self.packed = packed(data)
            if self.encoding:  # without the end of its name, which would have the mark in the text
                self._decoder = codecs.getincrementaldecoder(self.encoding[: len("utf-16")])("replace")
        if self._seen < _PROBE:
            self.binary = self.binary or (not self.encoding and b"\0" in data[: _PROBE - self._seen])
            self._seen += len(data)
        text = self._decoder.decode(data, final)
        self.newlines += text.count("\n") if self.encoding else data.count(b"\n")
        self.utf8_bytes += len(text.encode()) if self.encoding else len(data)
        self.chars += len(text)
        if self._room > 0 and text:
            self._prefix.append(text[: self._room])
            self._room -= len(self._prefix[-1])

    @property
    def prefix(self) -> str:
        """The first characters, as many as were asked for."""
        return "".join(self._prefix)

    def facts(self) -> Facts:
        """Return the totals."""
        return Facts(self.prefix, self.chars, self.newlines, self.binary, self.packed)


def read_facts(fd: int, prefix_len: int) -> Facts:
    """Read a whole file by ``pread``: the descriptor's position does not move."""
    counter = Counter(prefix_len)
    at = 0
    while data := os.pread(fd, CHUNK, at):
        counter.feed(data)
        at += len(data)
    counter.feed(b"", final=True)
    return counter.facts()


def peek(fd: int, prefix_len: int) -> Facts:
    """Read only the beginning."""
    data = os.pread(fd, max(_PROBE, prefix_len * BYTES_PER_CHAR), 0)
    counter = Counter(prefix_len)
    counter.feed(data)
    return Facts(counter.prefix, binary=counter.binary, packed=counter.packed)
