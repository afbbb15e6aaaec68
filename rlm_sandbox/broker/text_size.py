"""An upper bound of the bytes of a text in UTF-8 after NFKC normalisation, in linear time.

Normalising the text itself is out of the question: ``unicodedata.normalize`` sorts combining marks by insertion, so a stranger's 150 KiB of
marks in falling order take 13 s in which the interpreter's lock is held. This module adds up what each character can contribute instead.

Two sums are each an upper bound, and the smaller one is returned:

1. *Decomposed*: the bytes of every character's compatibility decomposition (NFKD). NFKC is that text with its marks reordered and some
   characters composed, and a composed character never has more bytes than its parts.
2. *Composed*: the bytes of every character's own NFKC form, plus :data:`BROKEN_BYTES` for each character that can combine with one before it.
   Between two characters that do not combine, NFKC of the text is NFKC of its parts; where a mark follows, the character before it can at
   most fall apart into its decomposition.

The first is exact for decomposed text (macOS file names, pointed Hebrew, Thai), the second for composed text (French, Japanese).
Hangul syllables count as composed in both: their parts are neighbours and always compose again.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections import Counter, OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

BROKEN_BYTES = 6
"""Bytes that one character's decomposition has more than its composed form, at most (Greek letters with three marks, Kannada vowel signs); a
test compares it with every character of this Python's Unicode."""

SLICE_CHARS = 16 * 1024
"""Characters scanned between two moments at which another thread may run: 2 ms."""

INLINE_CHARS = 2048
"""A text of at most this many characters is measured on the event loop, in 0.3 ms; handing it to a thread costs as much."""

TURN_CHARS = 16 * SLICE_CHARS
"""Characters measured in one turn of the thread, 35 ms, so that one call's 8 MiB do not keep another call waiting."""

KNOWN_MAX = 4096
"""Bounds that are remembered by digest, about 150 bytes each: the shared prefixes of many batches."""

_DECOMPOSING = ((0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x20000), (0x2F800, 0x2FA20))
"""Code points among which all lie that decompose or combine. What is left out are ideographs, Hangul syllables and unassigned planes."""

_HANGUL_VOWELS_AND_FINALS = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
"""They combine with what stands before them by arithmetic, not by a decomposition in the table."""


def normalized_bytes_bound(text: str) -> int:
    """Return an upper bound of ``len(text.encode())`` and of ``len(NFKC(text).encode())``; lone surrogates count as three bytes."""
    if text.isascii():
        return len(text)
    return sum(_bound(piece) + BROKEN_BYTES for piece in _pieces(text, SLICE_CHARS)) - BROKEN_BYTES


def _bound(piece: str) -> int:
    """Return the bound of a piece of text. Of two neighbours, the last character of the first may fall apart: :data:`BROKEN_BYTES` more."""
    growth = _growth()
    decomposed = composed = 0
    for char, times in Counter(piece).items():
        if (more := growth.get(char)) is not None:
            decomposed += more[0] * times
            composed += more[1] * times
    return _size(piece) + min(decomposed, composed)


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@lru_cache(maxsize=1)
def _growth() -> dict[str, tuple[int, int]]:
    """Return, by character, the bytes that it adds to its own UTF-8 length in the *decomposed* and in the *composed* sum.

    Making the table takes 40 ms, so the first text that needs it is measured in a thread.
    """
    chars = [chr(code) for first, end in _DECOMPOSING for code in range(first, end)]
    chars = [char for char in chars if unicodedata.decomposition(char) or unicodedata.combining(char)]
    combining = {char for char in chars if unicodedata.combining(char)} | {
        chr(code) for code in _HANGUL_VOWELS_AND_FINALS
    }
    for char in chars:
        parts = unicodedata.normalize("NFD", char)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == char:
            combining.update(parts[1:])
    table = {}
    for char in {*chars, *combining}:
        own, parts = _size(char), unicodedata.normalize("NFKD", char)
        whole = _size(unicodedata.normalize("NFKC", char))
        joins = parts[0] in combining
        apart = _size(_HANGUL.sub(lambda run: unicodedata.normalize("NFC", run[0]), parts))
        more = max(0, apart - own), max(0, apart + BROKEN_BYTES - own if joins else whole - own)
        if any(more):
            table[char] = more
    return table


_HANGUL = re.compile("[\u1100-\u11ff]+")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class TextSizes:
    """Bounds of texts, for one event loop: long texts are measured in a thread, a shared one once."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, int] = OrderedDict()
        self._measuring: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._turn = asyncio.Lock()

    async def bound(self, text: str, digest: str | None) -> int:
        """Return :func:`normalized_bytes_bound`; ``digest`` names the text, so that it is measured once however many calls share it."""
        if text.isascii():
            return len(text)
        if len(text) <= INLINE_CHARS and _growth.cache_info().currsize:
            return normalized_bytes_bound(text)
        if digest is None:
            return await self._measure(text)
        async with self._measuring.setdefault(digest, asyncio.Lock()):
            if digest not in self._known:
                self._known[digest] = await self._measure(text)
                if len(self._known) > KNOWN_MAX:
                    self._known.popitem(last=False)
            self._known.move_to_end(digest)
            return self._known[digest]

    async def _measure(self, text: str) -> int:
        total = 0
        for piece in _pieces(text, TURN_CHARS):
            async with self._turn:  # first come, first served: calls take turns piece by piece
                total += BROKEN_BYTES + await asyncio.to_thread(normalized_bytes_bound, piece)
        return total
