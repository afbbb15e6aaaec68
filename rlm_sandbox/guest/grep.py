"""``grep``: the lines that match, found at the speed of the disk and kept as eight bytes each.

The scan goes over bytes, in blocks of whole lines, on all cores, and writes down where matching lines begin. Everything
a person wants of a match (its text, number, character offset, neighbours) is read when it is asked for.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

from rlm_sandbox.guest import parallel, scan
from rlm_sandbox.guest import pattern as patterns
from rlm_sandbox.guest.errors import TooLarge
from rlm_sandbox.guest.finders import Finder, finder

if TYPE_CHECKING:
    from rlm_sandbox.guest.document import Document
    from rlm_sandbox.guest.text import Text

# Matches one call may hold: 64 MiB of positions, an eighth of the default memory limit.
MATCHES_MAX = 8 * 1024 * 1024
# Bytes searched at once. Large enough that starting a search costs nothing, small enough for the cache.
CHUNK = 1024 * 1024
# A longer line is not loaded for grep: that would be the whole of a file without newlines.
LINE_MAX = 16 * 1024 * 1024


class Match(str):  # noqa: SLOT000 - carries its place
    """One matching line: a ``str`` with the text of the line, without its newline.

    ``line`` is its number, from 1; ``offset`` the character position of its start; ``start`` and ``end`` the character
    positions of what matched; ``before`` and ``after`` the neighbouring lines that ``context=`` asked for.
    """

    _grep: Grep
    _at: int

    def __new__(cls, grep: Grep, at: int) -> Self:
        """Read the line that begins at byte ``at``."""
        text = grep.line_text(at)
        self = super().__new__(cls, text if isinstance(text, str) else str(text[: grep.doc.str_max]))
        self._grep = grep
        self._at = at
        return self

    @property
    def text(self) -> str:
        """The text of the line, a plain ``str``."""
        return str.__str__(self)

    @property
    def line(self) -> int:
        """The number of the line, from 1."""
        return self._grep.line_number(self._at)

    @property
    def offset(self) -> int:
        """The character position at which the line begins."""
        return self._grep.char(self._at)

    @property
    def start(self) -> int:
        """The character position at which the first hit on the line begins."""
        return self.offset + self._hit()[0]

    @property
    def end(self) -> int:
        """The character position behind the first hit on the line."""
        return self.offset + self._hit()[1]

    @property
    def match(self) -> re.Match[str] | None:
        """The ``re.Match`` of the line, with positions within the line; None with ``invert=True``."""
        return None if self._grep.invert else self._grep.pattern.search(self.text)

    def _hit(self) -> tuple[int, int]:
        found = self.match
        return found.span() if found else (0, len(self))

    @property
    def before(self) -> list[str]:
        """Up to ``context`` lines in front of the line."""
        return self._grep.lines_before(self._at)

    @property
    def after(self) -> list[str]:
        """Up to ``context`` lines behind the line."""
        return self._grep.lines_after(self._at)


class Grep(Sequence[Match]):
    """The matching lines, in order. Holds positions only; each item is read when it is asked for."""

    def __init__(
        self,
        text: Text,
        pattern: re.Pattern[str],
        find: Finder,
        *,
        invert: bool,
        context: int,
        max_count: int | None,
    ) -> None:
        self.doc = text._doc  # noqa: SLF001 - one family
        self._low, self._high = text._start, text._stop  # noqa: SLF001 - one family
        self._base = text._first  # noqa: SLF001 - one family
        self.pattern = pattern
        self.invert = invert
        self._context = context
        self._positions = _scan(self.doc, self._low, self._high, find, max_count)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Match]:
        return (Match(self, at) for at in self._positions)

    @overload
    def __getitem__(self, key: int) -> Match: ...
    @overload
    def __getitem__(self, key: slice) -> list[Match]: ...
    def __getitem__(self, key: int | slice) -> Match | list[Match]:
        if isinstance(key, slice):
            return [Match(self, at) for at in self._positions[key]]
        return Match(self, self._positions[key])

    def __repr__(self) -> str:
        shown = ", ".join(repr(match[:80]) for match in itertools.islice(self, 3))
        return f"<{len(self)} matching lines: {shown}{', ...' if len(self) > 3 else ''}>"  # noqa: PLR2004 - as above

    def __add__(self, other: object) -> list[Any]:
        return [*self, *other] if isinstance(other, list | Grep) else NotImplemented

    def line_text(self, at: int) -> str | Text:
        """Return the text of the line that begins at byte ``at``."""
        end = scan.find(self.doc, "\n", at, self._high)
        line = scan.view(self.doc, at, self._high if end < 0 else end)
        return line[:-1] if end >= 0 and line.endswith("\r") else line

    def line_number(self, at: int) -> int:
        """Return the number of the line at byte ``at``, from 1."""
        return self.doc.newlines_before(at) - self.doc.newlines_before(self._low) + 1

    def char(self, at: int) -> int:
        """Return the character position of byte ``at``."""
        return self.doc.char_at(at) - self._base()

    def lines_before(self, at: int) -> list[str]:
        """Return up to ``context`` lines in front of byte ``at``."""
        begin = at
        for _ in range(self._context):
            if begin <= self._low:
                break
            begin = max(self._low, scan.rfind(self.doc, "\n", self._low, begin - 1) + 1)
        return [str(line) for line in scan.lines(self.doc, begin, at)]

    def lines_after(self, at: int) -> list[str]:
        """Return up to ``context`` lines behind the line at byte ``at``."""
        end = scan.find(self.doc, "\n", at, self._high)
        if end < 0:
            return []
        return [str(line) for line in itertools.islice(scan.lines(self.doc, end + 1, self._high), self._context)]


def grep(
    text: Text,
    pattern: str | re.Pattern[str],
    *,
    flags: int = 0,
    ignore_case: bool = False,
    fixed: bool = False,
    context: int = 0,
    max_count: int | None = None,
    invert: bool = False,
) -> Grep:
    """See ``helpers.Helpers.grep``."""
    if isinstance(pattern, re.Pattern):
        flags, pattern = flags | pattern.flags & ~re.UNICODE, pattern.pattern
    if not isinstance(pattern, str):
        raise TypeError("the pattern of grep is a str or a compiled str pattern")
    if (max_count is not None and max_count < 0) or context < 0:
        raise ValueError("max_count and context are not negative")
    line = patterns.compile_line(pattern, flags=flags, ignore_case=ignore_case, fixed=fixed)
    return Grep(text, line, finder(line, invert=invert), invert=invert, context=context, max_count=max_count)


def _scan(doc: Document, low: int, high: int, find: Finder, max_count: int | None) -> array[int]:
    """Return where matching lines begin, at most ``max_count`` of them."""
    most = MATCHES_MAX if max_count is None else min(max_count, MATCHES_MAX)
    chunks = -(-(high - low) // CHUNK)

    def job(first: int, last: int) -> array[int]:
        found = array("q")
        for start, data, end in _line_blocks(doc, low, high, low + first * CHUNK, min(high, low + last * CHUNK)):
            found.extend(start + at for at in find(data) if at < end)
            if len(found) > most:
                break
        return found

    # Searched first alone: a match that comes soon, or few that are wanted, need no second process.
    head = min(chunks, parallel.WORTH // CHUNK)
    found = job(0, head) if low < high else array("q")
    if head < chunks and (max_count is None or len(found) < max_count):
        found.extend(parallel.gather(doc.source, job, head, chunks))
    if max_count is None and len(found) > most:
        raise TooLarge(
            f"more than {MATCHES_MAX} lines match", "narrow the pattern, pass max_count=, or count with context.count()"
        )
    return found[:max_count]


def _line_blocks(doc: Document, low: int, high: int, start: int, stop: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield ``(position, bytes, end)``: the lines that begin in ``[start, stop)`` of the text ``[low, high)``, in blocks.

    Lines are whole up to ``end``. A part of a line may follow (cutting it off would copy the block); it comes again.
    """
    if start > low:  # the line that is open at `start` belongs to whoever has its beginning
        newline = scan.find(doc, "\n", start - 1, high)
        start = high if newline < 0 else newline + 1
    while start < stop:
        data = doc.read(start, min(stop, start + CHUNK))
        end = data.rfind(b"\n") + 1
        if end == 0 or start + len(data) >= stop:  # the last line reaches beyond what was read
            newline = -1 if data.endswith(b"\n") else scan.find(doc, "\n", start + len(data), high)
            end = len(data) if data.endswith(b"\n") else (high if newline < 0 else newline + 1) - start
            if end - len(data) > LINE_MAX:
                raise TooLarge(
                    f"a line of {end} bytes is too long for grep", "use finditer(pattern) or context.find(text)"
                )
            data += doc.read(start + len(data), start + end)
        yield start, data, end
        start += end
