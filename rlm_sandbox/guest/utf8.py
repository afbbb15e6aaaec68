"""Cutting UTF-8 anywhere without changing what it decodes to.

The text of an input is ``bytes.decode("utf-8", "replace")``: valid sequences decode, every maximal invalid run becomes
one U+FFFD. Random access needs cuts where ``decode(a + b) == decode(a) + decode(b)``. Two facts give them: a byte that
is not a continuation byte (0x80-0xBF) always begins a new character, because it ends whatever came before it, and a
continuation byte preceded by three others cannot belong to any sequence (a lead byte reaches three bytes at most).
So a safe cut is never more than three bytes away.
"""

from __future__ import annotations

import codecs

REACH = 3  # continuation bytes a UTF-8 lead byte can claim
REPLACEMENT = "\ufffd"
_MARK = 0xDC00  # lone surrogates never come out of strict UTF-8, so they can carry a length


def safe_cut(before: bytes, at: int) -> int:
    """Return how many bytes to step back from ``before`` + ``at`` to a character start (0 to 3).

    ``before`` is the three bytes (fewer at the very start of the text) in front of the cut, ``at`` the byte after it.
    """
    if at & 0xC0 != 0x80:  # noqa: PLR2004 - the UTF-8 continuation pattern 10xxxxxx
        return 0
    for back, byte in enumerate(reversed(before[-REACH:]), start=1):
        if byte & 0xC0 != 0x80:  # noqa: PLR2004 - as above
            return back
    return 0


def decode(data: bytes) -> str:
    """Decode a run that begins and ends at safe cuts."""
    return data.decode("utf-8", "replace")


def count_chars(data: bytes) -> int:
    """Return the length in characters of a run that begins and ends at safe cuts."""
    return len(data) if data.isascii() else len(data.decode("utf-8", "replace"))


def byte_length(data: bytes, chars: int) -> int:
    """Return how many bytes of ``data`` (a run between safe cuts) make its first ``chars`` characters."""
    if chars <= 0:
        return 0
    marked = data.decode("utf-8", _MARKER)
    if chars >= len(marked):
        return len(data)
    head = marked[:chars]
    size = len(head.encode("utf-8", "surrogatepass"))
    for width in range(1, REACH + 1):  # a mark counts three bytes encoded, and stands for `width`
        if width != REACH:
            size -= head.count(chr(_MARK + width)) * (REACH - width)
    return size


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(_MARK + error.end - error.start), error.end


_MARKER = "rlm_sandbox.mark"
codecs.register_error(_MARKER, _mark)
