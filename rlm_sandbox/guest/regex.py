r"""Regular expressions over a ``Text``: the real ``re`` on decoded windows, with positions in the whole text.

A window begins with some text in front of the place where matching may begin, so that ``^``, ``\b`` and lookbehind see
what is there, and ends at least ``SPAN`` characters behind the last place where a match may begin. A match therefore
sees up to ``SPAN`` characters from its start on; that is the one difference from a ``str``. A match that runs into the
end of its window is tried again in a larger one, up to ``str_max`` characters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.guest.document import Document
    from rlm_sandbox.guest.text import Text

SPAN = 1024 * 1024
# Text in front of a window. Lookbehind has a fixed width; nobody writes one this wide.
BEHIND = 4096
# The first window is small, so that a first match near the start is found at once; then they grow to this.
WINDOW_MAX = 8 * 1024 * 1024
WINDOW_MIN = 64 * 1024


class TextMatch:
    """A match in a ``Text``: as ``re.Match``, with positions in the whole text. It keeps its own groups only."""

    __slots__ = ("_groups", "_regs", "lastgroup", "lastindex", "re", "string")

    def __init__(self, match: re.Match[str], text: Text, offset: int) -> None:
        self._regs = tuple((a + offset, b + offset) if a >= 0 else (-1, -1) for a, b in match.regs)
        self._groups: tuple[str | None, ...] = (match.group(), *match.groups())
        self.re = match.re
        self.lastindex = match.lastindex
        self.lastgroup = match.lastgroup
        self.string = text

    def _index(self, group: int | str) -> int:
        i = self.re.groupindex.get(group, -1) if isinstance(group, str) else group
        if not 0 <= i < len(self._regs):
            raise IndexError("no such group")
        return i

    def group(self, *groups: int | str) -> Any:
        """Return one or more groups of the match; without arguments the whole of it."""
        found = [self._groups[self._index(group)] for group in groups or (0,)]
        return found[0] if len(found) == 1 else tuple(found)

    def __getitem__(self, group: int | str) -> str | None:
        return self._groups[self._index(group)]

    def groups(self, default: str | None = None) -> tuple[str | None, ...]:
        """Return all groups, ``default`` for those that took no part."""
        return tuple(default if group is None else group for group in self._groups[1:])

    def groupdict(self, default: str | None = None) -> dict[str, str | None]:
        """Return the named groups."""
        return {
            name: default if (group := self._groups[i]) is None else group for name, i in self.re.groupindex.items()
        }

    def span(self, group: int | str = 0) -> tuple[int, int]:
        """Return where the group starts and ends in the text, ``(-1, -1)`` if it took no part."""
        return self._regs[self._index(group)]

    def start(self, group: int | str = 0) -> int:
        """Return where the group starts in the text."""
        return self.span(group)[0]

    def end(self, group: int | str = 0) -> int:
        """Return where the group ends in the text."""
        return self.span(group)[1]

    @property
    def regs(self) -> tuple[tuple[int, int], ...]:
        """All spans, the whole match first."""
        return self._regs

    def __repr__(self) -> str:
        return f"<TextMatch object; span={self.span()}, match={(self._groups[0] or '')[:50]!r}>"


class RegexMethods:
    """The regular expression methods of ``Text``. Patterns are strings or compiled ``str`` patterns."""

    __slots__ = ()
    _doc: Document

    def finditer(self: Any, pattern: str | re.Pattern[str], flags: int = 0) -> Iterator[TextMatch]:
        """Yield the non-overlapping matches, as ``re.finditer``."""
        return finditer(_compiled(pattern, flags), self)

    def findall(self: Any, pattern: str | re.Pattern[str], flags: int = 0) -> list[Any]:
        """Return all matches as ``re.findall`` does: strings, or groups, or tuples of groups."""
        found = finditer(_compiled(pattern, flags), self)
        return [_item(match) for match in found]

    def search(self: Any, pattern: str | re.Pattern[str], flags: int = 0) -> TextMatch | None:
        """Return the first match, or None."""
        return next(finditer(_compiled(pattern, flags), self), None)

    def match(self: Any, pattern: str | re.Pattern[str], flags: int = 0) -> TextMatch | None:
        """Return the match at the very start, or None."""
        text: Text = self
        compiled = _compiled(pattern, flags)
        size = SPAN
        while True:
            window = _window(text, 0, size)
            found = compiled.match(window)
            if found is None:
                return None
            if len(window) < size or not _at_the_edge(found, window):
                return TextMatch(found, text, 0)
            size = _larger(size, text)


def finditer(pattern: re.Pattern[str], text: Text) -> Iterator[TextMatch]:
    """Yield the matches of a pattern in a text, window by window."""
    at, width, span = 0, WINDOW_MIN, SPAN
    told = -1  # where the latest match was, if that was empty; after it none is looked for there but a longer one
    while True:
        low = max(0, at - BEHIND)
        window = _window(text, low, at + width + span)
        final = len(window) < at - low + width + span
        limit = len(window) + 1 if final else at - low + width
        after = limit
        for match in pattern.finditer(window, at - low):
            if match.start() >= limit:
                break
            if not final and _at_the_edge(match, window):
                after = -1
                at = low + match.start()  # nothing before it is left to find
                break
            empty = match.start() == match.end()
            if empty and low + match.start() == told:
                continue
            told = low + match.start() if empty else -1
            yield TextMatch(match, text, low)
            after = max(limit, match.end())
        if final:
            return
        if after < 0:
            span = _larger(span, text)
            width = 1
        else:
            at = low + after
            width, span = min(max(2 * width, WINDOW_MIN), WINDOW_MAX), SPAN


def _at_the_edge(match: re.Match[str], window: str) -> bool:
    r"""Tell whether more text could change the match: it reaches the window's end, or ``$`` took a newline there for the last."""
    return match.end() >= len(window) - window.endswith("\n")


def _window(text: Text, start: int, stop: int) -> str:
    return text._doc.decode(text._byte(start), text._byte(stop))  # noqa: SLF001 - one family


def _larger(span: int, text: Text) -> int:
    largest = text._doc.str_max  # noqa: SLF001 - one family
    if span >= largest:
        raise TooLarge(
            f"a match is longer than {largest} characters", "use a pattern that ends, such as .*? or [^\\n]*"
        )
    return min(4 * span, largest)


def _compiled(pattern: str | re.Pattern[str], flags: int) -> re.Pattern[str]:
    compiled = re.compile(pattern, flags)
    if not isinstance(compiled.pattern, str):
        raise TypeError("cannot use a bytes pattern on a string-like object")
    return compiled


def _item(match: TextMatch) -> Any:
    if match.re.groups == 0:
        return match[0]
    if match.re.groups == 1:
        return match[1] or ""
    return match.groups("")
