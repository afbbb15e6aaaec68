"""Streaming search: byte positions of a needle, and the pieces between needles, in a range of a document.

All positions are bytes of the document. A needle without U+FFFD is looked for in the bytes, block by block with as much
overlap as the needle is long; one with U+FFFD is looked for in decoded text, since what it stands for in the file
are bytes that are not UTF-8.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from typing import TYPE_CHECKING

from rlm_sandbox.guest import parallel, utf8
from rlm_sandbox.guest.document import NEAR
from rlm_sandbox.guest.needle import Needle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.guest.document import Document
    from rlm_sandbox.guest.text import Text


def find(doc: Document, needle: str, start: int, stop: int) -> int:
    """Return the first position of a non-empty needle, or -1."""
    if utf8.REPLACEMENT in needle:
        return next((at + utf8.byte_length(data, i) for at, data, i in _decoded(doc, needle, start, stop)), -1)
    sub = _encode(needle)
    wanted = Needle(sub)
    for at, data in doc.windows(start, stop, extra=len(sub) - 1) if sub else ():
        found = wanted.find(data)
        if found >= 0:
            return at + found
    return -1


def rfind(doc: Document, needle: str, start: int, stop: int) -> int:
    """Return the last position of a non-empty needle, or -1, reading backwards."""
    if utf8.REPLACEMENT in needle:
        tail = deque(_decoded(doc, needle, start, stop, overlapping=True), maxlen=1)
        return max((at + utf8.byte_length(data, i) for at, data, i in tail), default=-1)
    sub = _encode(needle)
    end, step = (stop if sub else start), NEAR
    while end > start:
        begin = max(start, end - min(step, doc.block))
        step *= 4
        found = doc.read(begin, min(stop, end + len(sub) - 1)).rfind(sub)
        if found >= 0:
            return begin + found
        end = begin
    return -1


def count(doc: Document, needle: str, start: int, stop: int) -> int:
    """Return how many non-overlapping occurrences of a non-empty needle there are."""
    if utf8.REPLACEMENT in needle:
        return sum(1 for _ in _decoded(doc, needle, start, stop))
    sub = _encode(needle)
    if not sub:
        return 0
    if overlaps_itself(sub):
        return sum(1 for _ in _greedy(doc, sub, start, stop))
    block, extra = doc.block, len(sub) - 1
    first, last = start // block, -(-stop // block)

    def job(low: int, high: int) -> array[int]:
        total, wanted = 0, Needle(sub)
        for i in range(low, high):
            total += wanted.count(doc.read(max(start, i * block), min(stop, (i + 1) * block + extra)))
        return array("q", [total])

    if stop - start < parallel.WORTH:
        return job(first, last)[0]
    return sum(parallel.gather(doc.source, job, first, last))


def lines(doc: Document, start: int, stop: int) -> Iterator[str | Text]:
    r"""Yield lines cut at newlines, without ``\n`` or ``\r\n``; a newline at the very end begins no further line."""
    if start >= stop:
        return
    last = rfind(doc, "\n", start, stop) + 1
    if last > start:
        for text in pieces(doc, "\n", start, last - 1):
            yield text[:-1] if text.endswith("\r") else text  # noqa: FURB188 - a Text has no cheap removesuffix
    if last < stop:  # without a newline, a carriage return is not half of an end of line
        yield view(doc, max(start, last), stop)


def pieces(doc: Document, sep: str, start: int, stop: int) -> Iterator[str | Text]:
    """Yield what stands between separators, as ``str.split(sep)`` does; very long pieces are ``Text``."""
    if utf8.REPLACEMENT in sep:
        yield from _decoded_pieces(doc, sep, start, stop)
        return
    sub = _encode(sep)
    if not sub:
        yield view(doc, start, stop)
        return
    step, overlapping = min(NEAR, doc.block), overlaps_itself(sub)
    while stop - start > step:
        data = doc.read(start, start + step)
        end = len(data) - len(data.split(sub)[-1]) if overlapping else data.rfind(sub) + len(sub)
        if end >= len(sub) and sub in data:
            yield from utf8.decode(data[: end - len(sub)]).split(sep)
            start, step = start + end, max(min(4 * step, doc.block), step // 2)
        elif step < doc.str_max:
            step = min(2 * step, doc.str_max)
        else:
            found = find(doc, sep, start + step - len(sub) + 1, stop)
            yield view(doc, start, stop if found < 0 else found)
            if found < 0:
                return
            start, step = found + len(sub), doc.block
    yield from doc.decode(start, stop).split(sep)


def view(doc: Document, start: int, stop: int) -> str | Text:
    """Return the text of a range: a ``str``, or a ``Text`` if it is very long."""
    if stop - start <= doc.str_max:
        return doc.decode(start, stop)
    from rlm_sandbox.guest.text import Text  # noqa: PLC0415 - text imports this module

    return Text(doc, start, stop)


def _encode(needle: str) -> bytes:
    """Return the bytes to look for; none if the needle holds a lone surrogate, which no text does."""
    try:
        return needle.encode()
    except UnicodeEncodeError:
        return b""


def overlaps_itself(sub: str | bytes) -> bool:
    """Tell whether two occurrences can overlap, so that counting must go from left to right."""
    return any(sub[:n] == sub[-n:] for n in range(1, len(sub)))


def _greedy(doc: Document, sub: bytes, start: int, stop: int) -> Iterator[int]:
    """Yield non-overlapping occurrences, from left to right."""
    pattern = re.compile(re.escape(sub))
    step = max(doc.block, 2 * len(sub))
    while start < stop:
        after = step
        for match in pattern.finditer(doc.read(start, min(stop, start + step + len(sub) - 1))):
            if match.start() >= step:
                break
            yield start + match.start()
            after = max(step, match.end())
        start += after


def _decoded(
    doc: Document, needle: str, start: int, stop: int, *, overlapping: bool = False
) -> Iterator[tuple[int, bytes, int]]:
    """Yield occurrences as ``(position, data, characters)``: so many characters into the ``data`` at ``position``."""
    advance = 1 if overlapping else len(needle)
    margin = 4 * len(needle) + utf8.REACH
    while start < stop:
        end = min(stop, doc.cut(start + max(doc.block, margin)))
        data = doc.read(start, min(stop, doc.cut(end + margin)))
        text, limit, i = utf8.decode(data), utf8.count_chars(data[: end - start]), 0
        while 0 <= (found := text.find(needle, i)) < limit:
            yield start, data, found
            i = found + advance
        start = end if i <= limit else start + utf8.byte_length(data, i)


def _decoded_pieces(doc: Document, sep: str, start: int, stop: int) -> Iterator[str | Text]:
    for at, data, i in _decoded(doc, sep, start, stop):
        found = at + utf8.byte_length(data, i)
        yield view(doc, start, found)
        start = at + utf8.byte_length(data, i + len(sep))
    yield view(doc, start, stop)
