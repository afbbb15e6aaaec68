"""The results of splitting a ``Text``, as sequences that are never whole in memory.

A sequence knows how to walk its pieces from any one of them; a checkpoint at every ``EVERY``-th piece, kept while walking,
makes indexing cheap. Positions are characters of the text.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Protocol, overload

from rlm_sandbox.guest import scan
from rlm_sandbox.guest.errors import TooLarge

if TYPE_CHECKING:
    from typing import SupportsIndex

    from rlm_sandbox.guest.text import Text

# Pieces between checkpoints: one costs some 100 bytes per 1,024 lines, an index at most 1,023 lines of walking.
EVERY = 1024
# Items a slice returns as a list; more come as a lazy view. A million short strings take about 60 MB.
LIST_MAX = 1_000_000


class Walk(Protocol):
    """Yield ``(position, piece)`` from a position at which a piece begins."""

    def __call__(self, start: int) -> Iterator[tuple[int, str | Text]]:
        """Walk on from ``start``."""


class Parts(Sequence["str | Text"]):
    """A lazy, read-only sequence of pieces. ``len`` walks once; slices of moderate length are lists."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._marks = {0: 0}  # by number, so that threads that pass one at the same time set it once
        self._total = -1

    def __iter__(self) -> Iterator[str | Text]:
        return (piece for _, piece in self._from(0))

    def _from(self, mark: int) -> Iterator[tuple[int, str | Text]]:
        """Walk from a checkpoint on, setting those that are passed for the first time."""
        number = mark * EVERY
        for position, piece in self._walk(self._marks[mark]):
            if number % EVERY == 0:
                self._marks.setdefault(number // EVERY, position)
            number += 1
            yield position, piece
        self._total = number

    def __len__(self) -> int:
        if self._total < 0:
            for _ in self._from(len(self._marks) - 1):
                pass
        return self._total

    def __bool__(self) -> bool:
        return next(self._walk(0), None) is not None

    @overload
    def __getitem__(self, key: SupportsIndex) -> str | Text: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[str | Text]: ...
    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if isinstance(key, slice):
            return self._slice(slice(*map(_bound, (key.start, key.stop, key.step))))
        at = index(key)
        if at < 0:
            at += len(self)
        if at >= 0:
            for piece in self._between(at, at + 1):
                return piece
        raise IndexError("list index out of range")

    def __reversed__(self) -> Iterator[str | Text]:
        for stop in range(len(self), 0, -EVERY):  # walking once per checkpoint, and not once per piece
            yield from reversed(list(self._between(max(0, stop - EVERY), stop)))

    def _between(self, start: int, stop: int) -> Iterator[str | Text]:
        """Yield pieces ``[start, stop)``."""
        while len(self._marks) <= start // EVERY:  # walk to the checkpoint
            known = len(self._marks)
            for _ in itertools.islice(self._from(known - 1), EVERY + 1):
                pass
            if len(self._marks) == known:
                return
        mark = start // EVERY
        for _, piece in itertools.islice(self._from(mark), start - mark * EVERY, stop - mark * EVERY):
            yield piece

    def _slice(self, key: slice) -> Sequence[str | Text]:
        if key.step == 0:
            raise ValueError("slice step cannot be zero")
        if (
            (key.step or 1) > 0
            and (key.start or 0) >= 0
            and 0 <= (key.stop if key.stop is not None else -1) <= LIST_MAX
        ):
            start = key.start or 0  # needs no length
            return list(itertools.islice(self._between(start, max(start, key.stop)), 0, None, key.step or 1))
        span = range(*key.indices(len(self)))
        if len(span) > LIST_MAX:
            return PartsView(self, span)
        if not span:
            return []
        low = min(span[0], span[-1])
        run = itertools.islice(self._between(low, max(span[0], span[-1]) + 1), 0, None, abs(span.step))
        return list(run) if span.step > 0 else list(run)[::-1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | Parts | PartsView):
            return NotImplemented
        return all(a == b for a, b in itertools.zip_longest(self, other, fillvalue=object()))

    __hash__ = None  # type: ignore[assignment] # as a list

    def __add__(self, other: object) -> list[Any]:
        return [*_listed(self), *other] if isinstance(other, list | Parts | PartsView) else NotImplemented

    def __radd__(self, other: object) -> list[Any]:
        return [*other, *_listed(self)] if isinstance(other, list) else NotImplemented

    def __getattr__(self, name: str) -> Any:
        """Say what to do instead to whoever would change it."""
        if name.startswith("_") or not hasattr(list, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"a lazy sequence has no {name}(): list(...) of it, or of a slice of it, is a list")

    def __repr__(self) -> str:
        head = list(itertools.islice(self, 3))
        return f"<lazy sequence {[str(piece[:60]) for piece in head]!r}, ...>"


def _listed(parts: Parts | PartsView) -> list[str | Text]:
    """Return all pieces, if they are few enough to be a list of someone's who did not say ``list``."""
    if len(parts) > LIST_MAX:
        raise TooLarge(f"a list of {len(parts)} pieces is not made by +", "go through it, or slice it first")
    return list(parts)


def _bound(value: SupportsIndex | None) -> int | None:
    """Return one part of a slice as a number that ``islice`` takes; beyond that there are no pieces."""
    return None if value is None else max(-sys.maxsize, min(index(value), sys.maxsize))


class PartsView(Sequence["str | Text"]):
    """A long slice of a lazy sequence."""

    def __init__(self, parts: Parts, span: range) -> None:
        self._parts = parts
        self._span = span

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[str | Text]:
        if self._span.step == 1:
            return self._parts._between(self._span.start, self._span.stop)  # noqa: SLF001 - one family
        return (self._parts[i] for i in self._span)

    @overload
    def __getitem__(self, key: SupportsIndex) -> str | Text: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[str | Text]: ...
    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if not isinstance(key, slice):
            return self._parts[self._span[key]]
        span = self._span[key]
        if len(span) > LIST_MAX:
            return PartsView(self._parts, span)
        return list(PartsView(self._parts, span))


def split(text: Text, sep: str | None, maxsplit: int) -> Parts | list[str | Text]:
    """See ``Text.split``."""
    _check(sep)
    walk = _words(text) if sep is None else _split(text, sep)
    if maxsplit < 0:
        return Parts(walk)
    result: list[str | Text] = []
    at = 0
    for position, piece in walk(0):
        at = position
        if len(result) == maxsplit:
            return [*result, _rest(text, at, sep)]
        result.append(piece)
    return result


def _check(sep: object) -> None:
    if sep is not None and not isinstance(sep, str):
        raise TypeError(f"must be str or None, not {type(sep).__name__}")
    if sep == "":
        raise ValueError("empty separator")


def _rest(text: Text, at: int, sep: str | None) -> str | Text:
    """Return the unsplit rest. Splitting at whitespace takes no leading whitespace into it, as ``str.split``."""
    rest: str | Text = text[at:]
    if sep is None and isinstance(rest, str):
        return rest.lstrip()
    return rest


def rsplit(text: Text, sep: str | None, maxsplit: int) -> Parts | list[str | Text]:
    """See ``Text.rsplit``."""
    _check(sep)
    if maxsplit < 0 and (sep is None or not scan.overlaps_itself(sep)):
        return split(text, sep, maxsplit)
    if sep is None:
        whole: list[str | Text] = list(str(text).rsplit(None, maxsplit))
        return whole
    result: list[str | Text] = []
    rest: str | Text = text
    while len(result) != maxsplit:
        if isinstance(rest, str):
            return [*rest.rsplit(sep, max(-1, maxsplit - len(result))), *result[::-1]]
        if len(result) > LIST_MAX:
            raise TooLarge(f"rsplit() would make a list of more than {LIST_MAX} pieces", "use split(), or a limit")
        head, found, tail = rest.rpartition(sep)
        if not found:
            break
        result.append(tail)
        rest = head
    result.append(rest if rest is not text else text[:])
    return result[::-1]


def splitlines(text: Text, *, keepends: bool) -> Parts:
    """See ``Text.splitlines``."""

    def walk(start: int) -> Iterator[tuple[int, str | Text]]:
        for line in _whole_lines(text, start):
            yield start, line if keepends else line.splitlines()[0]
            start += len(line)

    return Parts(walk)


def _whole_lines(text: Text, start: int) -> Iterator[str]:
    """Yield lines with their ends, cut at everything ``str.splitlines`` cuts at."""
    carry = ""
    for piece in _text_from(text, start):
        lines = (carry + piece).splitlines(keepends=True)
        carry = lines.pop()  # the end of it may come with the next piece: "\r" + "\n"
        yield from lines
        if len(carry) > text._doc.str_max:  # noqa: SLF001 - one family
            raise TooLarge("a line of this text does not fit into one str", "use lines() or chunks(size)")
    if carry:
        yield from carry.splitlines(keepends=True)


def _text_from(text: Text, start: int) -> Iterator[str]:
    doc = text._doc  # noqa: SLF001 - one family
    return doc.decoded(text._byte(start), text._stop)  # noqa: SLF001 - one family


def _split(text: Text, sep: str) -> Walk:
    def walk(start: int) -> Iterator[tuple[int, str | Text]]:
        doc = text._doc  # noqa: SLF001 - one family
        for piece in scan.pieces(doc, sep, text._byte(start), text._stop):  # noqa: SLF001 - one family
            yield start, piece
            start += len(piece) + len(sep)

    return walk


def _words(text: Text) -> Walk:
    def walk(start: int) -> Iterator[tuple[int, str | Text]]:
        carry, at = "", start
        for piece in _text_from(text, start):
            carry += piece
            words = carry.split()
            if not words:
                at += len(carry)
                carry = ""
                continue
            open_word = "" if carry[-1].isspace() else words.pop()
            i = 0
            for word in words:
                i = carry.index(word, i)
                yield at + i, word
                i += len(word)
            at += len(carry) - len(open_word)
            carry = open_word
            if len(carry) > text._doc.str_max:  # noqa: SLF001 - one family
                raise TooLarge("a word of this text does not fit into one str", "use chunks(size)")
        if carry:
            yield at, carry

    return walk
