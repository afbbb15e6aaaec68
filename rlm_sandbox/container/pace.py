"""Saying how far a long work on the input is: often enough for a person to follow and for an abandoned start to be noticed, and no more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.1
"""Seconds between two lines: what a person can follow."""


class Pace:
    """Passes a line on if the last one is old enough. ``tell`` may raise: that is how whoever waited gives the work up."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell = tell
        self._next = time.monotonic() + EVERY_S

    def __call__(self, make: Callable[[], str], *, last: bool = False) -> None:
        """Tell what ``make`` returns, now and then; ``last`` always."""
        if self._tell is None:
            return
        now = time.monotonic()
        if last or now >= self._next:
            self._next = now + EVERY_S
            self._tell(make())
