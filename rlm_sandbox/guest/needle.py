"""Looking for one literal in many blocks, as fast as the text allows.

Where the literal is seldom, the C library's ``memmem`` is two to three times faster than ``bytes.find``; where it is on every other line,
calling it costs more than it saves. ``bytes.find`` of one byte is ``memchr``, four times faster than ``bytes.find`` of a word, and most words have
a byte that is rare in the text at hand. Which of the three it is to be is seen by counting, in the text itself, again and again.
"""

from __future__ import annotations

from rlm_sandbox.guest.linux import memmem

# A call of memmem costs as much as searching two kilobytes.
_SELDOM = 4000
# memchr stops at every occurrence of the byte, at the price of some 200 bytes of plain search.
_RARE = 500
# Blocks after which the choice is made again, and bytes that are counted for it.
_AGAIN = 64
_SEEN = 64 * 1024


class Needle:
    """A literal of one byte or more; an empty one is never found."""

    def __init__(self, needle: bytes) -> None:
        self._needle = needle
        self._rare = b""
        self._back = 0
        self._blocks = 0
        self._seldom = False

    def find(self, block: bytes, start: int = 0) -> int:
        """Return the first occurrence from ``start`` on, or -1. ``start`` is 0 in every new block."""
        needle = self._needle
        if not needle:
            return -1
        if start == 0:
            self._look_at(block)
        if self._seldom and memmem is not None:
            return memmem(block, needle, start)
        if not self._rare:
            return block.find(needle, start)
        rare, back = self._rare, self._back
        at = block.find(rare, start + back)
        while at >= 0:
            if block.startswith(needle, at - back):
                return at - back
            at = block.find(rare, at + 1)
        return -1

    def count(self, block: bytes) -> int:
        """Return how many non-overlapping occurrences a block has."""
        at = self.find(block)
        if not (self._rare or self._seldom):
            return block.count(self._needle, at) if at >= 0 else 0
        found = 0
        while at >= 0:
            found += 1
            at = self.find(block, at + len(self._needle))
        return found

    def _look_at(self, block: bytes) -> None:
        if self._blocks % _AGAIN == 0 and block:
            seen = block[:_SEEN]
            self._seldom = seen.count(self._needle) * _SELDOM < len(seen)
            found, byte = min((seen.count(bytes([byte])), byte) for byte in set(self._needle))
            self._rare = bytes([byte]) if found * _RARE < len(seen) else b""
            self._back = self._needle.index(byte)
        self._blocks += 1
