"""Groups log lines by what they say, not by the numbers in them: lines become templates, and similar templates become one.

First every line is reduced on its own: times, numbers, identifiers, addresses, paths and quoted texts become ``<*>``, and a
JSON line becomes its telling members. Equal reductions are one group. Then groups that differ in a few words only, such as
user names, are merged. A line belongs to exactly one group at all times, so counts always add up to the number of lines.

This file runs on both sides: in the guest as the first part of the filter strategy, on the host under test. It therefore uses
the standard library alone.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass

LINE_MAX = 2000
"""Characters of a line that are looked at: longer ones are dumps, and their beginning tells what they are."""

ANY = "<*>"

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
TIME = re.compile(
    rf"[\[(]?(?:\d{{4}}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"
    rf"|(?:{_DAY} )?{_MONTH} +\d\d? \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{{4}})?"
    rf"|\d\d?/{_MONTH}/\d{{4}}:\d\d:\d\d:\d\d(?: [+-]\d{{4}})?)[\])]?"
)
_ACCESS = re.compile(r'\S+ \S+ \S+ \[[^\]]{20,30}\] "([A-Z]{3,8}) [^"]*" (\d{3}) ')
_QUOTED = re.compile(r"""(?<![A-Za-z0-9])"[^"]*"|(?<![A-Za-z0-9])'[^']*'(?![A-Za-z0-9])""")
_IDENTIFIER = re.compile(
    r"(?<![\w.-])(?=[A-Za-z.-]{0,64}\d)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(?![\w-])"  # a host name with a number in it
    r"|0[xX][0-9a-fA-F]+"
    r"|(?<![A-Za-z0-9])(?=[0-9a-fA-F-]{0,64}\d)[0-9a-fA-F]{6,}(?:-[0-9a-fA-F]{4,})*(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])[-+]?\d+(?:[.,:]\d+)*(?=[A-Za-z]{0,3}(?![A-Za-z0-9]))"
    r"|(?<=[A-Za-z])\d{4,}(?![A-Za-z])"
)
_KEPT_MEMBERS = (
    "level",
    "severity",
    "lvl",
    "service",
    "logger",
    "msg",
    "message",
    "event",
    "error",
    "err",
    "exception",
)


def template(line: str) -> str:
    """Return ``line`` with everything that varies replaced by ``<*>``."""
    line = line[:LINE_MAX]
    if line.startswith("{") and (members := _members(line)):
        return members
    if access := _ACCESS.match(line):
        return f"{ANY} {access[1]} {ANY} {access[2]}"
    line = TIME.sub(ANY, line)
    if '"' in line or "'" in line:
        line = _QUOTED.sub(ANY, line)
    return " ".join([word if word.isalpha() else _word(word) for word in line.split()])


def _word(word: str) -> str:
    if word[0] == "/" or "://" in word:
        return ANY
    if word == "()":  # an empty value between values
        return f"({ANY})"
    key, equals, value = word.partition("=")
    if equals and value and key:
        return f"{key}={value if value.isalpha() else ANY}"
    return _IDENTIFIER.sub(ANY, word)


def _members(line: str) -> str | None:
    """Return the telling members of a JSON object, the others by name only; None when it is not an object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    parts = []
    for key, member in value.items():
        if key in _KEPT_MEMBERS and isinstance(member, str):
            parts.append(f"{key}={' '.join([_word(word) for word in member.split()])}")
        else:
            parts.append(f"{'_'.join(key.split())}={ANY}")
    return " ".join(parts)[:LINE_MAX]


@dataclass
class Group:
    """Lines of one template: how many, and where the first and the last of them stand."""

    pattern: str
    count: int
    first: int
    last: int
    example: str

    def absorb(self, other: "Group") -> None:
        """Take in another group's lines."""
        self.count += other.count
        if other.first < self.first:
            self.first, self.example = other.first, other.example
        self.last = max(self.last, other.last)


class Grouper:
    """Counts lines by template as they come; :meth:`groups` returns them merged, the largest first."""

    ROOM = 20_000
    """Distinct templates kept before they are merged in passing: some 20 MB, far more than a sane log has."""

    def __init__(self) -> None:
        self._by_pattern: dict[str, Group] = {}

    def add(self, line: str, position: int) -> Group:
        """Count one line standing at ``position`` (a line number, or whatever the caller orders by); return its group."""
        pattern = template(line)
        group = self._by_pattern.get(pattern)
        if group is None:
            if len(self._by_pattern) >= self.ROOM:
                self._compact()
            group = self._by_pattern[pattern] = Group(pattern, 0, position, position, line[:LINE_MAX])
        group.count += 1
        group.last = position
        return group

    def groups(self) -> list[Group]:
        """Return the merged groups, by falling count and then by first position."""
        self._compact()
        return sorted(self._by_pattern.values(), key=lambda group: (-group.count, group.first))

    def _compact(self) -> None:
        self._by_pattern = {group.pattern: group for group in merge(list(self._by_pattern.values()))}


DISTINCT = 4
"""Different words in one place, all else equal, that show a place to be variable. Few are not enough: *Accepted password* and
*Failed password* differ in one word too."""

DISTINCT_NAMES = 2
"""The same after a word that announces a name."""

_ANNOUNCING = {
    *("at", "by", "device", "file", "for", "from", "host", "in", "job", "module", "named", "of", "on"),
    *("queue", "service", "table", "task", "to", "user"),
}

ROUNDS = 4
"""Variable places that one template can come to have by merging; each round finds one more."""


def merge(groups: list[Group]) -> list[Group]:
    """Merge groups whose templates differ in one place only, where that place is seen to be variable."""
    groups = _unite(groups)
    for _ in range(ROUNDS):
        before = len(groups)
        _generalise(groups)
        groups = _unite(groups)
        if len(groups) == before:
            break
    return groups


def _unite(groups: list[Group]) -> list[Group]:
    """Make groups of the same pattern one."""
    by_pattern: dict[str, Group] = {}
    for group in groups:
        known = by_pattern.setdefault(group.pattern, group)
        if known is not group:
            known.absorb(group)
    return list(by_pattern.values())


def _generalise(groups: list[Group]) -> None:
    """Give groups that differ in one variable place the same pattern; the widest families first."""
    families: dict[str, set[str]] = defaultdict(set)
    needed: dict[str, int] = {}
    known = {group.pattern for group in groups}
    for pattern in known:
        for family, enough in _families(pattern):
            families[family].add(pattern)
            needed[family] = min(enough, needed.get(family, enough))
    chosen: dict[str, str] = {}
    for family, members in sorted(families.items(), key=lambda item: (-len(item[1]), item[0])):
        free = members - chosen.keys()
        if family in known or len(free) >= needed[family]:
            chosen.update(dict.fromkeys(free, family))
    for group in groups:
        group.pattern = chosen.get(group.pattern, group.pattern)


def _families(pattern: str) -> list[tuple[str, int]]:
    """Return what ``pattern`` becomes when one of its plain words is variable, each with the number of words to show it."""
    words = pattern.split(" ")
    plain = [place for place, word in enumerate(words) if ANY not in word and not word.isdigit()]
    if len(plain) <= 1:  # one word alone says nothing
        return []
    return [
        (
            " ".join([*words[:place], _opened(words[place]), *words[place + 1 :]]),
            DISTINCT_NAMES if place and words[place - 1].lower() in _ANNOUNCING else DISTINCT,
        )
        for place in plain
    ]


def _opened(word: str) -> str:
    """Return the word with its value made variable: of ``key=value`` the key stays."""
    key, equals, _ = word.partition("=")
    return f"{key}={ANY}" if key and equals else ANY
