"""Which encoding a file is in, and files in UTF-16 and UTF-32 made to look like UTF-8.

Text is UTF-8 with U+FFFD for what is not, whatever a file claims to be; a byte order mark of UTF-16 or UTF-32 is the one exception.
Everything above this module works on UTF-8 bytes, so such a file is shown as the UTF-8 bytes of its text, transcoded
block by block as they are read. Only a table of where each block's bytes begin is kept; making it reads the file
once. Such a mark itself is not part of the text; one of UTF-8 stays in it, as U+FEFF, as Python decodes it.
"""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING

from rlm_sandbox.guest import parallel

if TYPE_CHECKING:
    from rlm_sandbox.guest.source import Source

# One mark of UTF-32 begins as one of UTF-16 does; text that is UTF-16 and begins with a NUL is not to be expected.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MARK = 4  # bytes of the longest
_PAIR = 2  # units that make one character at most
# Source bytes per block: a table entry of 8 bytes each, and 0.3 ms to transcode one.
BLOCK = 256 * 1024
# Transcoded blocks kept: reading lines one by one touches the same block a thousand times.
_KEPT = 4


def detect(head: bytes) -> str | None:
    """Return the encoding, such as ``"utf-16-le"``, that the mark at the beginning of a file names, else None: it is UTF-8."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def as_utf8(source: Source) -> Source:
    """Return the source, shown as UTF-8 if it is in another encoding."""
    name = detect(source.read(0, min(MARK, source.size)))
    return Transcoded(source, name) if name else source


class Transcoded:
    """The UTF-8 bytes of a source in UTF-16 or UTF-32. Its mark is as long as one of its units."""

    def __init__(self, source: Source, name: str, *, block: int = BLOCK) -> None:
        self._source = source
        self._name = name
        self._big = name.endswith("be")
        unit = self._unit = 4 if name.startswith("utf-32") else 2
        self._block = max(block - block % unit, _PAIR * unit)
        # The last block holds at least one pair: what a cut-off pair decodes to depends on what follows it.
        self._blocks = max(1, (source.size - unit - _PAIR * unit) // self._block + 1)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        lengths = (
            parallel.gather(source, self._lengths, 0, self._blocks)
            if source.size >= parallel.WORTH
            else self._lengths(0, self._blocks)
        )
        self._starts = array("q", accumulate(lengths, initial=0))
        self.size = self._starts[-1]

    def _lengths(self, low: int, high: int) -> array[int]:
        return array("q", (len(self._transcode(i)) for i in range(low, high)))

    def _edge(self, i: int) -> int:
        """Return where block ``i`` begins: never inside a surrogate pair."""
        if i == self._blocks:
            return self._source.size
        at = self._unit + i * self._block
        if i == 0 or self._unit == 4:  # noqa: PLR2004 - UTF-32 has no pairs
            return min(at, self._source.size)
        units = self._source.read(at - self._unit, at + self._unit)
        high, low = (units[0], units[2]) if self._big else (units[1], units[3])
        return at - self._unit if high & 0xFC == 0xD8 and low & 0xFC == 0xDC else at  # noqa: PLR2004 - the surrogate ranges

    def _transcode(self, i: int) -> bytes:
        return self._source.read(self._edge(i), self._edge(i + 1)).decode(self._name, "replace").encode()

    def _bytes(self, i: int) -> bytes:
        data = self._kept.get(i)
        if data is None:
            data = self._transcode(i)
            self._kept[i] = data
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        length = self._starts[i + 1] - self._starts[i]
        # A file rewritten in place may transcode to another length; positions stay those of the start.
        return data if len(data) == length else data[:length].ljust(length)

    def read(self, start: int, stop: int) -> bytes:
        """Return a range of the UTF-8 bytes."""
        parts = []
        i = bisect_right(self._starts, start) - 1
        while start < stop:
            base = self._starts[i]
            part = self._bytes(i)[start - base : stop - base]
            parts.append(part)
            start += len(part)
            i += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check(self) -> None:
        """Ask the source behind."""
        self._source.check()

    def after_fork(self) -> None:
        """Tell the source behind."""
        self._source.after_fork()
