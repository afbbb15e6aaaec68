"""So many calls are taken in per turn of the event loop, in the order in which they came.

Looking at a call (its canonical form, the cache) takes some 50 us. A batch of five thousand that was looked at in one go would keep its own
first request, and every other session, waiting for a quarter of a second.
"""

from __future__ import annotations

import asyncio
from collections import deque

PER_TURN = 4
"""Calls: a fifth of a millisecond between two looks at what else there is to do."""


class Doorway:
    """Used on one event loop."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._room = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._opening = False

    async def enter(self) -> None:
        """Go through at once where there is room in this turn, else in one of the next."""
        if self._room > 0 and not self._waiting:
            self._room -= 1
            self._open_next_turn()
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._open_next_turn()
        await place

    def _open_next_turn(self) -> None:
        if not self._opening:
            self._opening = True
            asyncio.get_running_loop().call_soon(self._open)

    def _open(self) -> None:
        self._opening, self._room = False, self._per_turn
        while self._waiting and self._room > 0:
            place = self._waiting.popleft()
            if not place.done():  # whoever left the queue takes nobody's room
                place.set_result(None)
                self._room -= 1
        if self._room < self._per_turn:
            self._open_next_turn()
