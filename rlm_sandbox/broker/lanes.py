"""What is known of one provider under one key: how wide it may be used, and from when on.

Width is additive increase, multiplicative decrease, and falls on rate limits only: a slow or failing provider is no reason
to think that fewer requests would do better. One burst of refusals is one decrease. An overloaded provider (5xx, 529) is given
pauses instead: after each five failures in a row nothing is sent for a second. Calls back off and give up by their own attempts, so
that a batch gets through a short outage, and is told of a long one, within a minute.

A ``retry-after`` is a gate. It is believed as given, so that calls whose deadline lies before its end fail at once instead of
waiting in vain; but one that is longer than any call can wait is doubted after a minute, since nobody would ever
learn that it was nonsense.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_AFTER = 5
"""Overloads in a row: as many as one call makes attempts, so that a single unlucky call does not stop the others."""

COOL_S = 1.0
"""At 20 wide, 200 calls that all fail five times end in 50 s. A pause that grew, or let one request through at a time, would hold every
call until its deadline for the sake of requests that cost nothing."""

DOUBT_ABOVE_S, DOUBT_AFTER_S = 600.0, 60.0
"""A gate longer than the default deadline of a call is lifted after a minute."""

RETRY_AFTER_MAX_S = 86_400.0


def sane_retry_after(seconds: float | None) -> float | None:
    """Return a usable delay: nonsense (NaN, negative, not a number) is none, endless is a day."""
    if not isinstance(seconds, (int, float)) or math.isnan(seconds) or seconds < 0:
        return None
    return min(float(seconds), RETRY_AFTER_MAX_S)


class Lane:
    """Admission for one provider and key. All times are of the given monotonic clock."""

    def __init__(self, full: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full = float(full)
        self.width = float(full)
        self.in_flight = 0
        self.believed_until = 0.0
        self.lift_at = 0.0
        self._narrowed_at = -math.inf
        self._overloads = 0

    def admits(self) -> bool:
        """Tell whether one more request may leave now."""
        return self.in_flight < max(1, int(self.width)) and self._clock() >= self.lift_at

    def hopeless(self, deadline: float) -> bool:
        """Tell whether a call with this deadline cannot be admitted before it."""
        return self._clock() < self.lift_at and self.believed_until >= deadline

    def succeeded(self) -> None:
        """Widen by one request per round, and trust the provider again."""
        self.width = min(self._full, self.width + 1 / max(1.0, self.width))
        self._overloads = 0

    def rate_limited(self, sent_at: float, retry_after_s: float | None) -> None:
        """Halve the width, once for all that was under way at the time; close the gate if a delay was asked for."""
        if sent_at > self._narrowed_at:
            self.width = max(1.0, min(self.width, float(self.in_flight)) / 2)
            self._narrowed_at = self._clock()
        if (delay := sane_retry_after(retry_after_s)) is not None:
            self._close(delay)

    def overloaded(self, retry_after_s: float | None = None) -> None:
        """Count a failure that is the provider's; pause when they do not stop."""
        self._overloads += 1
        if (delay := sane_retry_after(retry_after_s)) is not None:
            self._close(delay)
        if self._overloads >= PAUSE_AFTER:
            self._close(COOL_S)
            self._overloads = 0

    def _close(self, delay: float) -> None:
        now = self._clock()
        self.believed_until = max(self.believed_until, now + delay)
        lift = now + (delay if delay <= DOUBT_ABOVE_S else DOUBT_AFTER_S)
        self.lift_at = max(self.lift_at, lift)
