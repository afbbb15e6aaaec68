r"""Turning a per-line pattern into one that can search a whole block of lines at once.

``grep`` means: for each line, does ``re.search(pattern, line)`` match? Asking line by line costs a microsecond each;
asking ``re`` for the next match in a block costs nothing for the lines between. Both agree if the pattern cannot
match across a newline, so everything in it that could is narrowed: ``\s`` to ``[^\S\n]``, ``[^x]`` to ``[^x\n]``,
``.`` loses DOTALL, ``^`` and ``$`` get MULTILINE. What the block search finds is a superset; the exact pattern then
decides on the line. Patterns with parts for which this is not plainly true (lookaround, atomic groups, ``\A``,
``\Z``, ``\B``, inline flags) are not turned: their lines are asked one by one.
"""

from __future__ import annotations

import re
from re import _parser as parser  # type: ignore[attr-defined] # the only way to a pattern's structure
from typing import Any

# What each escape is narrowed to when it could match a newline; in a class it needs the guard in front of the class.
_NARROW = {"s": r"[^\S\n]", "W": r"[^\w\n]", "D": r"[^\d\n]"}
_GUARD = r"(?!\n)"
_SAME = set("xuUwdSbnrtfv.^$*+?{}[]()|\\/-\"'#&~ :;<>=!@%,_`")  # escapes that need nothing
# A literal that is shorter occurs on most lines; more of them at once are slower than the pattern.
_SHORTEST = 3
_MOST = 8
_FLAGS = re.compile(r"\A\(\?[aimsux]+\)")
_META = set(".^$*+?{}[]()|\\")


def literal(pattern: str) -> str | None:
    r"""Return the string a pattern stands for if it is one, else None. ``disk\.full`` is one."""
    out = []
    chars = iter(pattern)
    for char in chars:
        if char == "\\":
            following = next(chars, "")
            if not following or following.isalnum() or not following.isascii():
                return None
            out.append(following)
        elif char in _META:
            return None
        else:
            out.append(char)
    return "".join(out)


def body(line: re.Pattern[str]) -> str:
    """Return a pattern's source without leading flags such as ``(?i)``, which are in ``line.flags`` as well."""
    return _FLAGS.sub("", line.pattern)


def _narrowed(pattern: str, *, carriage: bool) -> str | None:
    r"""Return the pattern narrowed to lines, or None if it cannot be.

    With ``carriage`` lines may end in ``\r\n``, and ``$`` must match in front of that too.
    """
    out: list[str] = []
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            piece = _escape(pattern[i + 1 : i + 2])
            if piece is None:
                return None
            out.append(piece)
            i += 2
        elif char == "[":
            end = _class_end(pattern, i)
            if end < 0:
                return None
            out.append(_class(pattern[i:end]))
            i = end
        elif char == "(" and pattern.startswith("(?", i) and not _plain_group(pattern, i):
            return None
        elif char in "*+?}" and pattern[i + 1 : i + 2] == "+":
            return None  # possessive: what it swallows is not given back, so narrowing could change the answer
        else:
            out.append(r"(?=\r?\n|\Z)" if char == "$" and carriage else char)
            i += 1
    return "".join(out)


def _escape(char: str) -> str | None:
    if char in _NARROW:
        return _NARROW[char]
    if char and (char in _SAME or (char.isdigit() and char != "0")):
        return "\\" + char
    return None


def _plain_group(pattern: str, i: int) -> bool:
    return pattern.startswith("(?:", i) or (pattern.startswith("(?P", i) and pattern[i + 3 : i + 4] in "<=")


def _class_end(pattern: str, i: int) -> int:
    """Return the position behind the class that starts at ``i``, or -1."""
    i += 1
    if pattern.startswith("^", i):
        i += 1
    if pattern.startswith("]", i):
        i += 1
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i + 1 if i < len(pattern) else -1


def _class(source: str) -> str:
    if source.startswith("[^"):
        return r"[^\n" + source[2:] if not source.startswith("[^]") else r"[^\n\]" + source[3:]
    if any(
        escape in source for escape in (r"\s", r"\W", r"\D", r"\n", r"\x", r"\0", r"\1", r"\t-", "\t-", r"\u", r"\N")
    ):
        return f"(?:{_GUARD}{source})"
    return source if source[1:2] >= " " else f"(?:{_GUARD}{source})"


def narrow(line: re.Pattern[str]) -> tuple[re.Pattern[str], re.Pattern[str]] | None:
    """Return the patterns that search blocks without and with carriage returns, or None if there can be none."""
    source = body(line)
    if line.flags & re.VERBOSE or not source or "\n" in source:
        return None
    flags = (line.flags | re.MULTILINE) & ~re.DOTALL
    plain, carriage = (_narrowed(source, carriage=carriage) for carriage in (False, True))
    if plain is None or carriage is None:
        return None
    try:
        return re.compile(plain, flags), re.compile(carriage, flags)
    except re.error:
        return None


def required(line: re.Pattern[str]) -> list[str] | None:
    """Return literals of which every match contains one, or None if there are none worth looking for."""
    try:
        tree = parser.parse(body(line), line.flags & ~re.DEBUG)
    except (re.error, AttributeError):
        return None
    found = _required(tree)
    return found if found and min(map(len, found)) >= _SHORTEST and len(found) <= _MOST else None


def _required(tree: Any) -> list[str]:
    """Return the best set of literals for one sequence of the parse tree; none if it has none."""
    candidates: list[list[str]] = []
    run = ""
    for op, value in [*tree, (None, None)]:
        name = str(op)
        if name == "LITERAL":
            run += chr(value)
            continue
        candidates.append([run] if run else [])
        run = ""
        if name == "SUBPATTERN" and not value[1] & re.IGNORECASE:
            candidates.append(_required(value[3]))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] >= 1:
            candidates.append(_required(value[2]))
        elif name == "ATOMIC_GROUP":
            candidates.append(_required(value))
        elif name == "BRANCH":
            branches = [_required(branch) for branch in value[1]]
            candidates.append([literal for branch in branches for literal in branch] if all(branches) else [])
    return max(candidates, key=lambda found: (min(map(len, found), default=0), -len(found)))


def compile_line(pattern: str, *, flags: int, ignore_case: bool, fixed: bool) -> re.Pattern[str]:
    """Return the pattern that decides on one line."""
    if ignore_case:
        flags |= re.IGNORECASE
    return re.compile(re.escape(pattern) if fixed else pattern, flags)
