"""Where the characters and lines of a byte source are.

A ``Document`` lays a grid of blocks over its source and remembers, per grid point, how many characters and how many
newlines come before it. Both tables are filled on demand, only as far as a question needs, and shared by everyone who
looks at the document. Text that is ASCII so far has equal byte and character positions, so its blocks are never decoded.

``anchors`` are positions known beforehand (the files of a directory come with their lengths): a question about the
last file does not read the ones before it. Between two anchors the character table is always a filled prefix followed
by unknown entries (-1), which is what makes it searchable; a grid point at the second anchor itself may be known before them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from rlm_sandbox.guest import parallel, utf8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.guest.source import Source

# One table entry of 16 bytes per block: 640 KiB for 10 GiB. Decoding one block, the price of a random access into
# non-ASCII text, takes about 0.1 ms.
BLOCK = 256 * 1024
# A str of this many characters is still returned whole; beyond it, a lazy view. Equal to the session's default.
STR_MAX = 64 * 1024 * 1024
# The first look for something that is probably near, such as the end of a line.
NEAR = 4096


class Document:
    """A source with its positions. ``start`` and ``stop`` of every method are bytes, at character starts."""

    def __init__(
        self,
        source: Source,
        *,
        block: int = BLOCK,
        str_max: int = STR_MAX,
        anchors: tuple[array[int], array[int]] | None = None,
    ) -> None:
        self.source = source
        self.size = source.size
        self.block = max(block, utf8.REACH + 1)  # so that the edges of the grid stay in order
        block = self.block
        self.str_max = str_max
        self._anchor_bytes, self._anchor_chars = anchors or (array("q", [0]), array("q", [0]))
        self.blocks = -(-self.size // block)
        self._chars = array("q", [-1]) * (self.blocks + 1)
        self._chars[0] = 0
        self._newlines = array("q", [0])
        self._latest = (0, 0)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range."""
        return self.source.read(start, stop) if start < stop else b""

    def decode(self, start: int, stop: int) -> str:
        """Return the text of a range."""
        return utf8.decode(self.read(start, stop))

    def windows(self, start: int, stop: int, *, extra: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield ``(position, bytes)`` over a range, each with ``extra`` bytes of what follows.

        The first ones are small, for whoever looks for something near; then they are blocks of the grid.
        """
        step = NEAR
        while start < stop:
            end = min(stop, start + step, (start // self.block + 1) * self.block)
            step *= 4
            yield start, self.read(start, min(stop, end + extra))
            start = end

    def decoded(self, start: int, stop: int) -> Iterator[str]:
        """Yield the text of a range in pieces of about a block."""
        while start < stop:
            end = min(stop, self.cut((start // self.block + 1) * self.block))
            if end <= start:
                end = min(stop, self.cut((start // self.block + 2) * self.block))
            yield self.decode(start, end)
            start = end

    def cut(self, at: int) -> int:
        """Return the last character start at or before ``at``."""
        if at <= 0:
            return 0
        if at >= self.size:
            return self.size
        base = max(at - utf8.REACH, 0)
        data = self.read(base, at + 1)
        return at - utf8.safe_cut(data[:-1], data[-1])

    def edge(self, i: int) -> int:
        """Return the character start that belongs to grid point ``i``."""
        return self.cut(i * self.block)

    def count(self, start: int, stop: int) -> int:
        """Return how many characters a range holds."""
        return utf8.count_chars(self.read(start, stop))

    def char_at(self, at: int) -> int:
        """Return the character position of the byte position ``at`` (a character start)."""
        i = at // self.block
        if i < self.blocks and self.edge(i + 1) <= at:
            i += 1
        anchor = bisect_right(self._anchor_bytes, at) - 1
        start = self.edge(i)
        if self._anchor_bytes[anchor] >= start:
            return self._anchor_chars[anchor] + self.count(self._anchor_bytes[anchor], at)
        return self._chars_before(i, anchor) + self.count(start, at)

    def byte_at(self, char: int) -> int:
        """Return the byte position of the character ``char``, or the size if there are not that many."""
        anchor = bisect_right(self._anchor_chars, char) - 1
        start, chars = self._anchor_bytes[anchor], self._anchor_chars[anchor]
        last = anchor + 1 == len(self._anchor_bytes)
        stop = self.size if last else self._anchor_bytes[anchor + 1]
        low, high = self._grid(start), stop // self.block
        first = low
        while low <= high:  # the first grid point that lies beyond `char` or is not known yet
            middle = (low + high) // 2
            if 0 <= self._chars[middle] <= char:
                low = middle + 1
            else:
                high = middle - 1
        i = low
        limit = stop // self.block
        while i <= limit and (before := self._chars_before(i, anchor)) <= char:
            i = limit + 1 if i == limit else min(limit, i + max(1, (char - before) // self.block))
        if i > first:
            # Looked up and not read: a file that begins at a grid point has that point known while those before it are not.
            start, chars = self.edge(i - 1), self._chars_before(i - 1, anchor)
        end = self.edge(i) if i <= limit else stop
        if char == chars:
            return start
        # The characters in between take at most four bytes each; one cut off behind them changes nothing before it.
        data = self.read(start, min(end, start + 4 * (char - chars)))
        if data.isascii():
            return start + min(char - chars, len(data))
        return start + utf8.byte_length(data, char - chars)

    def _grid(self, at: int) -> int:
        """Return the first grid point whose edge is not before ``at``."""
        i = -(-at // self.block)
        while i <= self.blocks and self.edge(i) < at:
            i += 1
        return i

    def _chars_before(self, i: int, anchor: int) -> int:
        """Return the characters before the edge of grid point ``i``, filling the table from ``anchor`` up to it."""
        if self._chars[i] >= 0:
            return self._chars[i]
        k, first = i, self._grid(self._anchor_bytes[anchor])
        while k > first and self._chars[k - 1] < 0:
            k -= 1
        if k > first:
            position, chars = self.edge(k - 1), self._chars[k - 1]
        else:
            position, chars = self._anchor_bytes[anchor], self._anchor_chars[anchor]
        if (i - k) * self.block >= parallel.WORTH:
            return self._fill_parallel(k, i, position, chars)
        for j in range(k, i + 1):
            edge = self.edge(j)
            chars += self.count(position, edge)
            self._chars[j] = chars
            position = edge
        return chars

    def _fill_parallel(self, k: int, i: int, position: int, chars: int) -> int:
        """Count many blocks with all cores; entry ``j`` of the answer is what lies between edges ``j - 1`` and ``j``."""

        def count(low: int, high: int) -> array[int]:
            counts = array("q")
            at = position if low == k else self.edge(low - 1)
            for j in range(low, high):
                edge = self.edge(j)
                counts.append(self.count(at, edge))
                at = edge
            return counts

        for j, n in enumerate(parallel.gather(self.source, count, k, i + 1), start=k):
            chars += n
            self._chars[j] = chars
        return chars

    def total_chars(self) -> int:
        """Return the length in characters of the whole document."""
        return self.char_at(self.size)

    def newlines_before(self, at: int) -> int:
        """Return how many newlines lie before the byte position ``at``."""
        i = at // self.block
        start, known = i * self.block, self._newline_table(i)[i]
        latest = self._latest  # read once: another thread may ask meanwhile
        if start < latest[0] <= at:  # questions mostly come in order
            start, known = latest
        known += self.read(start, at).count(b"\n")
        self._latest = (at, known)
        return known

    def after_newline(self, n: int) -> int:
        """Return the byte position just behind newline number ``n`` (from 1), or -1 if there are fewer. 0 is the start."""
        if n <= 0:
            return 0
        full, table = self.size // self.block, self._newlines
        if table[-1] < n and len(table) * self.block >= parallel.WORTH:
            table = self._newline_table(full)
        while table[-1] < n and len(table) <= full:
            table = self._newline_table(len(table))
        i = _first_at_least(table, n)
        start = (i - 1) * self.block
        data = self.read(start, min(self.size, i * self.block))
        position = -1
        for _ in range(n - table[i - 1]):
            position = data.find(b"\n", position + 1)
            if position < 0:
                return -1
        return start + position + 1

    def _newline_table(self, i: int) -> array[int]:
        """Return the newline table, filled up to grid point ``i`` at least.

        A table that was given out is not changed any more, and a longer one takes its place as a whole: threads may ask at the same time.
        """
        table = self._newlines
        known = len(table)
        if i < known:
            return table

        def count(low: int, high: int) -> array[int]:
            step = self.block
            return array("q", (self.read((j - 1) * step, j * step).count(b"\n") for j in range(low, high)))

        many = (i - known) * self.block >= parallel.WORTH
        counts = parallel.gather(self.source, count, known, i + 1) if many else count(known, i + 1)
        longer = table[:]
        for n in counts:
            longer.append(longer[-1] + n)
        if len(longer) > len(self._newlines):
            self._newlines = longer
        return longer


def _first_at_least(table: array[int], n: int) -> int:
    """Return the first index whose entry is at least ``n``; its length if none is."""
    low, high = 0, len(table)
    while low < high:
        middle = (low + high) // 2
        if table[middle] < n:
            low = middle + 1
        else:
            high = middle
    return low
