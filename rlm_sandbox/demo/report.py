"""Reads the numbers back out of a filter report, so that they can be held against what was planted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_sandbox.demo.loggen import Planted

_ROW = re.compile(r"\| (\d+) \| [A-Z]* \| \d+(?:-\d+)? \| `([^`]*)` \| ")


@dataclass(frozen=True, slots=True)
class Check:
    """One planted incident beside what the report says of it; ``counted`` is None where no single row is about it."""

    planted: Planted
    counted: int | None

    @property
    def right(self) -> bool:
        """Whether the report has exactly the planted count."""
        return self.counted == self.planted.count


def trouble(report: str) -> list[tuple[int, str]]:
    """Return ``(count, pattern)`` of every group of trouble in the report."""
    return [(int(found[1]), found[2]) for line in report.splitlines() if (found := _ROW.match(line))]


def compare(report: str, planted: Iterable[Planted]) -> list[Check]:
    """Look for every incident's signature, numbers made variable, among the report's patterns."""
    rows = trouble(report)
    checks = []
    for item in planted:
        words = re.sub(r"\d+", "<*>", item.signature)
        counts = [count for count, pattern in rows if words in re.sub(r"\d+", "<*>", pattern)]
        checks.append(Check(item, counts[0] if len(counts) == 1 else None))
    return checks
