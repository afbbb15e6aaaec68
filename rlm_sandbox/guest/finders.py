"""What finds matching lines in a block of whole lines: one function per kind of pattern, all with one answer.

A finder takes a block of bytes (whole lines) and yields where in it a matching line begins. From the fastest on:

- a literal: ``bytes.find``, or ``memchr`` for the rarest of its bytes, which is several times faster in most text;
- a pattern in which some literal must occur: lines with the literal, then the pattern on those lines;
- a pattern that could be narrowed to lines (see ``pattern``): the regular expression over the whole block;
- anything else: the pattern on each line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from rlm_sandbox.guest import pattern as patterns
from rlm_sandbox.guest import utf8
from rlm_sandbox.guest.needle import Needle

Finder = Callable[[bytes], Iterator[int]]

# With a candidate line every so many bytes, checking candidates costs more than the pattern over the whole block.
_DENSE = 256


def finder(line: re.Pattern[str], *, invert: bool) -> Finder:
    """Return the fastest finder for a pattern that is to match single lines."""
    source, ignore_case = patterns.body(line), bool(line.flags & re.IGNORECASE)
    if invert:
        return lambda block: by_line(block, line, wanted=False)
    whole = None if line.flags & re.VERBOSE else patterns.literal(source)
    if whole and not ignore_case and not set(whole) & {"\n", "\r", utf8.REPLACEMENT}:
        return _literal(whole)
    narrowed = patterns.narrow(line)
    slow = _by_block(line, narrowed) if narrowed else lambda block: by_line(block, line, wanted=True)
    needles = [whole] if whole else patterns.required(line)
    if not needles or any(set(needle) & {"\n", "\r", utf8.REPLACEMENT} for needle in needles):
        return slow
    if ignore_case and not all(needle.isascii() for needle in needles):
        return slow
    return _Required(line, needles, slow)


def _needle(literal: str) -> Needle:
    try:
        return Needle(literal.encode())
    except UnicodeEncodeError:  # a lone surrogate is in no text
        return Needle(b"")


def _literal(literal: str) -> Finder:
    needle = _needle(literal)

    def find(block: bytes) -> Iterator[int]:
        at = needle.find(block)
        while at >= 0:
            yield block.rfind(b"\n", 0, at) + 1
            end = block.find(b"\n", at)
            at = needle.find(block, end) if end >= 0 else -1

    return find


class _Required:
    """Finds lines in which one of some literals occurs, and asks the pattern about those lines only."""

    def __init__(self, line: re.Pattern[str], needles: list[str], slow: Finder) -> None:
        self._line = line
        self._ignore_case = bool(line.flags & re.IGNORECASE)
        self._needles = [_needle(needle.lower() if self._ignore_case else needle) for needle in needles]
        self._slow = slow
        self._dense = False

    def __call__(self, block: bytes) -> Iterator[int]:
        if self._dense or (self._ignore_case and not block.isascii()):
            return self._slow(block)
        return self._check(block)

    def _check(self, block: bytes) -> Iterator[int]:
        haystack = block.lower() if self._ignore_case else block
        search = self._line.search
        nexts = [needle.find(haystack) for needle in self._needles]
        candidates = 0
        while (at := min((n for n in nexts if n >= 0), default=-1)) >= 0:
            candidates += 1
            start, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at)
            if search(_line_text(block, start, end)):
                yield start
            if end < 0:
                break
            for i, needle in enumerate(self._needles):
                if 0 <= nexts[i] < end:
                    nexts[i] = needle.find(haystack, end)
        self._dense = candidates * _DENSE > len(block)


def _line_text(block: bytes, start: int, end: int) -> str:
    """Return the text of the line ``[start, end)`` of a block; ``end`` is -1 for a last line without newline."""
    if end < 0:
        return utf8.decode(block[start:])
    return utf8.decode(block[start : end - 1 if block.endswith(b"\r", start, end) else end])


def _by_block(line: re.Pattern[str], narrowed: tuple[re.Pattern[str], re.Pattern[str]]) -> Finder:
    """Search whole blocks. ``narrowed`` is for blocks without and with carriage returns."""
    exact = line.search

    def find(block: bytes) -> Iterator[int]:
        text = utf8.decode(block)
        search = narrowed["\r" in text].search
        found = search(text)
        starts: list[int] = []
        number = last = 0
        while found:
            start = text.rfind("\n", 0, found.start()) + 1
            if start == len(text):  # behind the last newline is no line
                return
            end = text.find("\n", found.start())
            row = text[start:] if end < 0 else text[start : end - 1 if text.endswith("\r", start, end) else end]
            if exact(row):
                if len(text) == len(block):  # a character per byte, as in ASCII
                    yield start
                else:
                    starts = starts or [0, *accumulate(len(part) + 1 for part in block.split(b"\n"))]
                    number += text.count("\n", last, start)
                    last = start
                    yield starts[number]
            if end < 0:
                return
            found = search(text, end + 1)

    return find


def by_line(block: bytes, line: re.Pattern[str], *, wanted: bool) -> Iterator[int]:
    """Ask the pattern about every line of the block; yield those of which the answer is as wanted."""
    at, search = 0, line.search
    closed = block.endswith(b"\n")
    rows = (block[:-1] if closed else block).split(b"\n")
    for i, row in enumerate(rows):
        text = utf8.decode(row)
        if text.endswith("\r") and (closed or i < len(rows) - 1):
            text = text[:-1]
        if (search(text) is not None) is wanted:
            yield at
        at += len(row) + 1
