"""Cutting a text into chunks that know where they come from, so that an answer can cite its place."""

from __future__ import annotations

import itertools
import re
from collections import deque
from operator import index
from typing import TYPE_CHECKING, Any, Self

from rlm_sandbox.guest import scan
from rlm_sandbox.guest.errors import TooLarge
from rlm_sandbox.guest.regex import finditer
from rlm_sandbox.guest.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import SupportsIndex

# Characters per token of English text and code, rounded down; other scripts are taken as a token per character.
CHARS_PER_TOKEN = 4
# What ends a paragraph and still belongs to it: its newline and the blank lines behind it, not what the next is indented by.
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")
_VISIBLE = re.compile(r"\S")
UNITS = ("chars", "tokens", "lines", "paragraphs", "files")

Span = tuple[int, int]


class Number(int):
    """A chunk's number, which can still be called as ``str.index``: every method of ``str`` works on a chunk."""

    _find: Callable[..., int]

    def __call__(self, *args: Any) -> int:
        """Do what ``str.index`` does."""
        return self._find(*args)


class Chunk(str):  # noqa: SLOT000 - carries its place
    """A ``str`` with its place: characters ``[start, end)`` of the text it was cut from, number ``index`` from 0."""

    start: int
    end: int
    _number: int

    def __new__(cls, value: str, start: int, number: int) -> Self:
        """Attach the place to the text."""
        self = super().__new__(cls, value)
        self.start, self.end, self._number = start, start + len(value), number
        return self

    @property
    def index(self) -> Number:  # still callable
        """The number of the chunk, from 0."""
        number = Number(self._number)
        number._find = super().index  # noqa: SLF001 - one family
        return number


class Chunks:
    """The chunks of a text: iterate as often as you like; ``len`` counts them, for characters without cutting."""

    def __init__(
        self, text: str | Text, size: int, overlap: int, by: str | re.Pattern[str], files: list[dict[str, Any]]
    ) -> None:
        if not hasattr(size, "__index__") or (size := index(size)) <= 0:
            raise ValueError(f"size is a positive number of {by}, not {size!r}")
        if not hasattr(overlap, "__index__") or not 0 <= (overlap := index(overlap)) < size:
            raise ValueError(f"overlap lies between 0 and size - 1, not {overlap!r}")
        if not isinstance(by, re.Pattern) and by not in UNITS:
            raise ValueError(
                f"by is one of {', '.join(UNITS)} or re.compile(...) for what begins a section, not {by!r}"
            )
        if isinstance(text, Text) and by == "chars" and size > text._doc.str_max:  # noqa: SLF001 - one family
            raise TooLarge(f"a chunk of {size} characters does not become one str", "use a smaller size")
        self._text = text
        self._size = size
        self._overlap = overlap
        self._by = by
        self._files = files

    def __iter__(self) -> Iterator[Chunk]:
        if self._by == "chars":
            return (Chunk(value, at, i) for i, (at, value) in enumerate(self._by_chars()))
        return (Chunk(str(self._text[a:b]), a, i) for i, (a, b) in enumerate(self._spans()))

    def __len__(self) -> int:
        if self._by == "chars":
            step, total = self._size - self._overlap, len(self._text)
            return 0 if not total else max(1, -(-(total - self._overlap) // step))
        return sum(1 for _ in self._spans())

    def __getitem__(self, key: SupportsIndex | slice) -> Chunk | list[Chunk]:
        if self._by == "chars":
            chosen = range(len(self))[key]
            return self._at(chosen) if isinstance(chosen, int) else [self._at(number) for number in chosen]
        if isinstance(key, slice):
            return list(itertools.islice(self, *key.indices(len(self)))) if (key.step or 1) > 0 else list(self)[key]
        at = index(key)
        if at < 0:
            at += len(self)
        for chunk in itertools.islice(self, at, at + 1) if at >= 0 else ():
            return chunk
        raise IndexError("chunk index out of range")

    def _at(self, number: int) -> Chunk:
        """Return a chunk of characters without cutting those before it."""
        start = number * (self._size - self._overlap)
        return Chunk(str(self._text[start : start + self._size]), start, number)

    def __repr__(self) -> str:
        return f"<chunks of {self._size} {self._by}, overlap {self._overlap}>"

    def _spans(self) -> Iterator[Span]:
        if self._by == "tokens":
            return self._by_tokens()
        units: dict[str, Callable[[], Iterator[Span]]] = {
            "lines": self._lines,
            "paragraphs": self._paragraphs,
            "files": self._by_file,
        }
        return self._grouped(units[self._by]() if isinstance(self._by, str) else self._sections(self._by))

    def _by_chars(self) -> Iterator[tuple[int, str]]:
        """Yield ``(position, text)``, decoding the text once from front to back."""
        at, step = 0, self._size - self._overlap
        parts: list[str] = []
        have = 0
        for piece in stream(self._text):
            parts.append(piece)
            have += len(piece)
            if have > self._size:
                whole, begin = "".join(parts), 0
                while have - begin > self._size:
                    yield at, whole[begin : begin + self._size]
                    at += step
                    begin += step
                parts, have = [whole[begin:]], have - begin
        if have:  # always more than the overlap, so it is not all in the chunk before
            yield at, "".join(parts)

    def _by_tokens(self) -> Iterator[Span]:
        at = 0
        while window := str(self._text[at : at + self._size * CHARS_PER_TOKEN]):
            taken = _fitting(window, self._size)
            yield at, at + taken
            if not self._text[at + taken : at + taken + 1]:
                return
            back = _fitting(window[:taken][::-1], self._overlap) if self._overlap else 0
            at += max(1, taken - back)

    def _grouped(self, units: Iterator[Span]) -> Iterator[Span]:
        """Join ``size`` neighbouring units each, the last ``overlap`` of one group beginning the next."""
        group: deque[Span] = deque(maxlen=self._size)
        fresh = 0
        for unit in units:
            group.append(unit)
            fresh += 1
            if len(group) == self._size and fresh:
                yield group[0][0], group[-1][1]
                for _ in range(self._size - self._overlap):
                    group.popleft()
                fresh = 0
        if fresh:
            yield group[0][0], group[-1][1]

    def _lines(self) -> Iterator[Span]:
        at, begin = 0, -1
        for line in pieces(self._text, "\n"):
            if begin >= 0:
                yield begin, at
            begin, at = at, at + len(line) + 1
        if at - 1 > begin:  # the last piece ends in no newline; after a final newline it is nothing
            yield begin, at - 1

    def _paragraphs(self) -> Iterator[Span]:
        """Yield paragraphs with the blank lines behind them, the first with those before it: nothing of the text is left out."""
        at = 0
        first = next((match.start() for match in matches(_VISIBLE, self._text)), -1)
        for match in matches(_BLANK, self._text) if first >= 0 else ():
            if match.end() > first:
                yield at, match.end()
                at = match.end()
        if self._text[at : at + 1]:
            yield at, len(self._text)

    def _sections(self, pattern: re.Pattern[str]) -> Iterator[Span]:
        at = 0
        for match in matches(pattern, self._text):
            if match.start() > at:
                yield at, match.start()
                at = match.start()
        if self._text[at : at + 1]:
            yield at, len(self._text)

    def _by_file(self) -> Iterator[Span]:
        return ((entry["start"], entry["end"]) for entry in self._files)


def _fitting(text: str, tokens: int) -> int:
    """Return how many characters of ``text`` fit into an estimated number of tokens, at least one."""
    if text.isascii():
        return max(1, min(len(text), tokens * CHARS_PER_TOKEN))
    room = tokens * CHARS_PER_TOKEN
    for i, char in enumerate(text):
        room -= 1 if char.isascii() else CHARS_PER_TOKEN
        if room < 0:
            return max(1, i)
    return len(text)


def stream(text: str | Text) -> Iterator[str]:
    """Yield a text in pieces that are easy to hold."""
    if isinstance(text, str):
        yield text
    else:
        yield from text._doc.decoded(text._start, text._stop)  # noqa: SLF001 - one family


def pieces(text: str | Text, sep: str) -> Iterator[str | Text]:
    """Yield the pieces between separators."""
    if isinstance(text, str):
        yield from text.split(sep)
    else:
        yield from scan.pieces(text._doc, sep, text._start, text._stop)  # noqa: SLF001 - one family


def matches(pattern: re.Pattern[str], text: str | Text) -> Iterator[Any]:
    """Yield the matches of a pattern, on either kind of text."""
    return pattern.finditer(text) if isinstance(text, str) else finditer(pattern, text)
