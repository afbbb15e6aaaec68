"""At most so many attempts per second, evenly: a leaky bucket with a burst of one second."""

from __future__ import annotations

import asyncio


class Rate:
    """One session's clock of attempts. Times are the event loop's."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1.0 / per_second
        self._burst = 1.0
        self._next = 0.0

    async def take(self, deadline: float) -> None:
        """Wait for the next turn.

        Raises:
            TimeoutError: the turn would come after the deadline; nothing was taken.
        """
        now = asyncio.get_running_loop().time()
        turn = max(self._next, now - self._burst + self._gap)
        if turn > deadline:
            raise TimeoutError
        self._next = turn + self._gap
        if turn > now:
            await asyncio.sleep(turn - now)
