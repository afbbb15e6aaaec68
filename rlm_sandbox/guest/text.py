"""``Text``: a ``str`` that stays on disk.

Every operation it offers gives what ``str`` gives, in characters: ``len``, indexes, slices with steps, ``in``, ``find``,
``count``, ``split``, iteration (by character, as ``str`` iterates; ``lines()`` goes by line). What differs is only when
the result itself would be huge: a contiguous slice over ``str_max`` characters is another ``Text``, ``split`` and
``splitlines`` are lazy sequences, and whatever must build a new huge string (``lower``, ``replace``, ``str()``) raises
``TooLarge`` and names the lazy way.

Searching works on bytes: UTF-8 needles can only match at character starts. The one needle for which that fails is
U+FFFD, which stands for bytes that are not UTF-8; those are searched decoded.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

from rlm_sandbox.guest import scan, utf8
from rlm_sandbox.guest.document import BLOCK, STR_MAX, Document
from rlm_sandbox.guest.errors import TooLarge
from rlm_sandbox.guest.regex import RegexMethods
from rlm_sandbox.guest.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.guest.parts import Parts

# Characters shown by repr: one terminal line.
_SHOWN = 40
# Characters that a hash is made of. Equal texts have equal heads; two texts with one head are merely compared.
_HASHED = 4096
# Negative indexes this near the end are answered from the end, without counting what lies before.
_NEAR_END = 1024 * 1024


class Text(RegexMethods):
    """Read-only text over a document, or over the byte range ``[start, stop)`` of one (at character starts)."""

    __slots__ = ("_base", "_doc", "_len", "_start", "_stop")

    def __init__(self, doc: Document, start: int = 0, stop: int | None = None) -> None:
        self._doc = doc
        self._start = start
        self._stop = doc.size if stop is None else stop
        self._len = -1
        self._base = 0 if start == 0 else -1

    @classmethod
    def from_bytes(cls, data: bytes, *, block: int = BLOCK, str_max: int = STR_MAX) -> Text:
        """Return the text of UTF-8 bytes in memory."""
        return cls(Document(BytesSource(data), block=block, str_max=str_max))

    # -- size and identity

    def __len__(self) -> int:
        if self._len < 0:
            self._len = self._doc.char_at(self._stop) - self._first()
        return self._len

    def _first(self) -> int:
        """Return the document's character position of this text's first character."""
        if self._base < 0:
            self._base = self._doc.char_at(self._start)
        return self._base

    @property
    def nbytes(self) -> int:
        """How many bytes the text takes in its file. Never reads."""
        return self._stop - self._start

    def __bool__(self) -> bool:
        return self._stop > self._start

    def __repr__(self) -> str:
        head = self._piece(0, _SHOWN)
        return f"<Text of {self.nbytes} bytes: {head!r}{'...' if self.nbytes > len(head.encode()) else ''}>"

    def __str__(self) -> str:
        if self.nbytes > self._doc.str_max and len(self) > self._doc.str_max:
            raise TooLarge(
                f"a text of {self.nbytes} bytes does not become one str",
                "slice it, or go through it with lines(), chunks(), grep() or finditer()",
            )
        return self._doc.decode(self._start, self._stop)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __hash__(self) -> int:
        if self.nbytes <= self._doc.str_max:
            return hash(str(self))
        return hash(self._piece(0, _HASHED))

    def __copy__(self) -> Text:
        """Return the text itself: it is read-only, as ``str`` is."""
        return self

    def __deepcopy__(self, _memo: object) -> Text:
        """Return the text itself, as copying a ``str`` does."""
        return self

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self._equals_str(other)
        if not isinstance(other, Text):
            return NotImplemented
        if self is other or (self._doc, self._start, self._stop) == (other._doc, other._start, other._stop):
            return True
        return len(self) == len(other) and self._compare(other) == 0

    def _equals_str(self, other: str) -> bool:
        # A character takes one to four bytes, so most strings differ by size alone.
        if not len(other) <= self.nbytes <= 4 * len(other):
            return False
        at = 0
        for piece in self._doc.decoded(self._start, self._stop):
            if not other.startswith(piece, at):
                return False
            at += len(piece)
        return at == len(other)

    # -- characters

    def __iter__(self) -> Iterator[str]:
        for piece in self._doc.decoded(self._start, self._stop):
            yield from piece

    def __reversed__(self) -> Iterator[str]:
        for at in range(len(self), 0, -self._doc.block):
            yield from reversed(self._piece(max(0, at - self._doc.block), at))

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        """Return a ``str``; a contiguous slice of more than ``str_max`` characters is a ``Text``."""
        if isinstance(key, slice):
            return self._slice(key)
        at = index(key)
        if at < 0:
            tail = self._tail(-at)
            at = -1 if tail is None else tail
            char = "" if at < 0 else self._doc.decode(at, self._next(at))
        else:
            start = self._byte(at)
            char = self._doc.decode(start, self._next(start))
        if not char:
            raise IndexError("string index out of range")
        return char

    def _next(self, at: int) -> int:
        """Return where the character behind the one at byte ``at`` starts."""
        data = self._doc.read(at, min(self._stop, at + utf8.REACH + 1))
        return at + utf8.byte_length(data, 1) if data else at

    def _piece(self, start: int, stop: int) -> str:
        """Return the characters ``[start, stop)``, of which there are few enough for a ``str``, or as many as there are."""
        return self._doc.decode(self._byte(start), self._byte(stop))

    def _byte(self, char: int) -> int:
        """Return the byte position of a character of this text, its end if there are not that many."""
        return min(self._stop, self._doc.byte_at(self._first() + char))

    def _tail(self, chars: int) -> int | None:
        """Return the byte position of the ``chars``-th last character, or None if there are not that many."""
        if self._len < 0 and chars <= _NEAR_END:
            low = max(self._start, self._doc.cut(self._stop - 4 * chars))
            data = self._doc.read(low, self._stop)
            have = utf8.count_chars(data)
            if have >= chars:
                return low + utf8.byte_length(data, have - chars)
            if low == self._start:
                return None
        return None if chars > len(self) else self._byte(len(self) - chars)

    def _slice(self, key: slice) -> str | Text:
        step = 1 if key.step is None else index(key.step)
        if step == 1:
            start = self._bound(key.start, 0, self._start)
            stop = self._bound(key.stop, None, self._stop)
            return self._range(start, max(start, stop))
        span = range(*slice(key.start, key.stop, step).indices(len(self)))
        if len(span) > self._doc.str_max:
            raise TooLarge(
                f"a slice with a step that has {len(span)} characters does not become one str", "use a smaller range"
            )
        if not span:
            return ""
        low, high = min(span[0], span[-1]), max(span[0], span[-1]) + 1
        pieces, offset = [], 0  # `offset`: of the next wanted character within the next piece
        for piece in self._doc.decoded(self._byte(low), self._byte(high)):
            pieces.append(piece[offset :: abs(step)])
            offset = (offset - len(piece)) % abs(step) if offset < len(piece) else offset - len(piece)
        joined = "".join(pieces)
        return joined if step > 0 else joined[::-1]

    def _bound(self, value: SupportsIndex | None, default: int | None, at: int) -> int:
        """Return the byte position of one bound of a slice, without counting the whole text if it can be helped."""
        if value is None:
            return at
        char = index(value)
        if char == default:
            return at
        if char >= 0:
            return self._byte(char)
        tail = self._tail(-char)
        return self._start if tail is None else tail

    def _range(self, start: int, stop: int) -> str | Text:
        """Return the text of a byte range: a ``str`` if it is moderate, else a view."""
        if stop - start <= self._doc.str_max:
            return self._doc.decode(start, stop)
        view = Text(self._doc, start, stop)
        return str(view) if len(view) <= self._doc.str_max else view

    # -- searching

    def _bounds(self, start: SupportsIndex | None, end: SupportsIndex | None) -> tuple[int, int] | None:
        """Return the byte range of ``[start, end)``, or None if ``start`` lies beyond the end of the text."""
        end = None if end is None else index(end)  # of a wrong type it is refused, wherever ``start`` lies
        if start is not None and index(start) > 0:
            low = self._byte(index(start))
            if low == self._stop and index(start) > len(self):
                return None
        else:
            low = self._bound(start, 0, self._start)
        high = self._bound(end, None, self._stop)
        return None if high < low else (low, high)

    def _char(self, at: int) -> int:
        return self._doc.char_at(at) - self._first() if at >= 0 else -1

    def __contains__(self, sub: object) -> bool:
        needle = _text(sub, "'in <string>' requires string as left operand")
        return not needle or scan.find(self._doc, needle, self._start, self._stop) >= 0

    def find(self, sub: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        """Return the position of the first occurrence, or -1."""
        needle = _text(sub, "must be str")
        bounds = self._bounds(start, end)
        if bounds is None:
            return -1
        return self._char(scan.find(self._doc, needle, *bounds) if needle else bounds[0])

    def rfind(self, sub: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        """Return the position of the last occurrence, or -1. Reads from the end."""
        needle = _text(sub, "must be str")
        bounds = self._bounds(start, end)
        if bounds is None:
            return -1
        return self._char(scan.rfind(self._doc, needle, *bounds) if needle else bounds[1])

    def index(self, sub: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        """As ``find``, but raise ``ValueError`` if there is none."""
        return _found(self.find(sub, start, end))

    def rindex(self, sub: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        """As ``rfind``, but raise ``ValueError`` if there is none."""
        return _found(self.rfind(sub, start, end))

    def count(self, sub: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        """Return the number of non-overlapping occurrences."""
        needle = _text(sub, "must be str")
        bounds = self._bounds(start, end)
        if bounds is None:
            return 0
        if not needle:
            return self._doc.char_at(bounds[1]) - self._doc.char_at(bounds[0]) + 1
        return scan.count(self._doc, needle, *bounds)

    def startswith(
        self, prefix: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /
    ) -> bool:
        """Tell whether the text (or its range) begins with ``prefix`` or any string of a tuple."""
        bounds = self._bounds(start, end)
        return any(bounds is not None and self._at(bounds[0], bounds[1], word) for word in _words(prefix, "startswith"))

    def endswith(self, suffix: object, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> bool:
        """Tell whether the text (or its range) ends with ``suffix`` or any string of a tuple."""
        bounds = self._bounds(start, end)
        words = _words(suffix, "endswith")
        if bounds is None:
            return False
        low, high = bounds
        for word in words:
            view = Text(self._doc, low, high)
            at = low if not word else view._tail(len(word))
            if not word or (at is not None and self._doc.decode(at, high) == word):
                return True
        return False

    def _at(self, low: int, high: int, word: str) -> bool:
        data = self._doc.read(low, min(high, self._doc.cut(low + 4 * len(word) + utf8.REACH)))
        return utf8.decode(data).startswith(word)

    # -- cutting

    def split(self, sep: str | None = None, maxsplit: int = -1) -> Parts | list[str | Text]:
        """Return the pieces between separators: a lazy sequence, or a list when ``maxsplit`` limits it."""
        from rlm_sandbox.guest import parts  # noqa: PLC0415 - parts imports Text

        return parts.split(self, sep, maxsplit)

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> Parts | list[str | Text]:
        """As ``split``, counting ``maxsplit`` from the end."""
        from rlm_sandbox.guest import parts  # noqa: PLC0415 - parts imports Text

        return parts.rsplit(self, sep, maxsplit)

    def splitlines(self, keepends: bool = False) -> Parts:
        """Return the lines as ``str.splitlines`` cuts them, as a lazy sequence. ``lines()`` cuts at newlines only."""
        from rlm_sandbox.guest import parts  # noqa: PLC0415 - parts imports Text

        return parts.splitlines(self, keepends=keepends)

    def lines(self) -> Iterator[str | Text]:
        """Yield the lines, cut at newlines only, without them (and without the carriage return in front)."""
        return scan.lines(self._doc, self._start, self._stop)

    def partition(self, sep: str) -> tuple[str | Text, str, str | Text]:
        """Return what stands before the first ``sep``, ``sep``, and what stands behind it."""
        at = scan.find(self._doc, _separator(sep), self._start, self._stop)
        if at < 0:
            return self._range(self._start, self._stop), "", ""
        return self._range(self._start, at), sep, self._range(self._after(at, sep), self._stop)

    def rpartition(self, sep: str) -> tuple[str | Text, str, str | Text]:
        """Return what stands before the last ``sep``, ``sep``, and what stands behind it."""
        at = scan.rfind(self._doc, _separator(sep), self._start, self._stop)
        if at < 0:
            return "", "", self._range(self._start, self._stop)
        return self._range(self._start, at), sep, self._range(self._after(at, sep), self._stop)

    def _after(self, at: int, sep: str) -> int:
        """Return the byte position behind an occurrence of ``sep``, whose bytes may be others if it holds U+FFFD."""
        data = self._doc.read(at, min(self._stop, at + 4 * len(sep) + utf8.REACH))
        return at + utf8.byte_length(data, len(sep))

    # -- everything that makes a new string

    def __add__(self, other: object) -> str:
        return str(self) + str(other) if isinstance(other, str | Text) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + str(self) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return str(self) * times

    __rmul__ = __mul__

    def __mod__(self, values: object) -> str:
        return str(self) % values

    def __lt__(self, other: object) -> bool:
        return self._compare(other) < 0 if isinstance(other, str | Text) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._compare(other) <= 0 if isinstance(other, str | Text) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._compare(other) > 0 if isinstance(other, str | Text) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._compare(other) >= 0 if isinstance(other, str | Text) else NotImplemented

    def _compare(self, other: str | Text) -> int:
        at, step = 0, self._doc.block
        while True:
            mine = self._piece(at, at + step)
            theirs = other[at : at + step] if isinstance(other, str) else other._piece(at, at + step)  # noqa: SLF001 - a Text too
            if mine != theirs:
                return -1 if mine < theirs else 1
            if len(mine) < step:
                return 0
            at += step

    def isascii(self) -> bool:
        """Tell whether all characters are ASCII. Streams."""
        return all(data.isascii() for _, data in self._doc.windows(self._start, self._stop))

    def __getattr__(self, name: str) -> Any:
        """Offer every other method of ``str`` on texts that fit into one."""
        if name.startswith("_") or not hasattr(str, name):
            raise AttributeError(f"'Text' object has no attribute {name!r}")

        def method(*args: Any, **options: Any) -> Any:
            if self.nbytes > self._doc.str_max and len(self) > self._doc.str_max:
                raise TooLarge(
                    f"{name}() would build a str of {self.nbytes} bytes",
                    f"apply {name}() to the pieces that lines() or chunks(size) give",
                )
            return getattr(str(self), name)(*args, **options)

        return method


def _text(value: object, message: str) -> str:
    if isinstance(value, Text):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{message}, not {type(value).__name__}")
    return value


def _separator(sep: object) -> str:
    text = _text(sep, "must be str")
    if not text:
        raise ValueError("empty separator")
    return text


def _found(at: int) -> int:
    if at < 0:
        raise ValueError("substring not found")
    return at


def _words(value: object, name: str) -> tuple[str, ...]:
    words = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"{name} first arg must be str or a tuple of str, not {type(value).__name__}")
    return cast("tuple[str, ...]", words)
