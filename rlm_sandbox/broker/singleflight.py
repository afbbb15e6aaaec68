"""Identical requests in flight are one request.

The purchase runs in a task of its own, so that it belongs to none of those who wait for it: one that is cancelled leaves the
others alone. When the last one has gone, a purchase that has not been sent is called off, and one that has been is let
finish, since it is paid for: its answer is kept for whoever asks again.

Whether a purchase has been called off is written down here and never asked of its task: a library below it may cancel the task it runs
in as normal business and take that back (anyio does at every connect), and in between the task looks as if nobody wanted it.

An answer is everybody's. A failure is shared only within the account that ran into it, and a deadline only with those whose
own has come: the others try for themselves. So they do where the money ran out on a later attempt: what a purchase has spent on faults, or asks
for after an answer that did not fit its schema, is its own. A refusal of the first hold is what each of them would meet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Lifeline:
    """What a purchase knows of those who wait, and they of it."""

    __slots__ = ("abandoned", "personal", "sent")

    def __init__(self) -> None:
        self.abandoned = False
        self.sent = False
        self.personal = False
        """The failure came of what this purchase had spent and asked before: whoever joined it has not, and may still succeed."""


class CalledOff(Exception):  # noqa: N818 - no failure of the purchase
    """The purchase was cancelled before it had an outcome."""


class Flight(Generic[T]):
    """One purchase and the number of those who wait for it."""

    def __init__(self, party: object, start: Callable[[Lifeline], Awaitable[T]]) -> None:
        self.party = party
        self.lifeline = Lifeline()
        self.waiting = 0
        self.called_off = False
        self.task: asyncio.Task[T] = asyncio.ensure_future(_run(start, self.lifeline))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def wait(self) -> T:
        """Wait for the outcome without owning it. Raises what the purchase raised, and :class:`CalledOff` if it was cancelled."""
        self.waiting += 1
        self.lifeline.abandoned = False
        try:
            await asyncio.wait({self.task})
        finally:
            self.waiting -= 1
            if self.waiting == 0 and not self.task.done():
                self.lifeline.abandoned = True
                if not self.lifeline.sent:
                    self.call_off()
        if self.task.cancelled():
            raise CalledOff
        return self.task.result()

    def call_off(self) -> None:
        """Cancel the purchase; from now on nobody joins it."""
        self.called_off = True
        self.task.cancel()


async def _run(start: Callable[[Lifeline], Awaitable[T]], lifeline: Lifeline) -> T:
    return await start(lifeline)


class SingleFlight(Generic[T]):
    """The flights of one event loop, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._all: set[Flight[T]] = set()

    def find(self, key: str) -> Flight[T] | None:
        """Return the purchase of this key that is under way and still wanted."""
        flight = self._flights.get(key)
        return None if flight is None or flight.task.done() or flight.called_off else flight

    def start(self, key: str | None, party: object, start: Callable[[Lifeline], Awaitable[T]]) -> Flight[T]:
        """Begin a purchase; with a key others may join it."""
        flight = Flight(party, start)
        self._all.add(flight)
        if key is not None:
            self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    async def finish(self, party: object, grace_s: float) -> None:
        """Give the party's purchases a moment to end, then cancel what is left."""
        flights = [flight for flight in self._all if flight.party is party]
        if not flights:
            return
        _, late = await asyncio.wait([flight.task for flight in flights], timeout=grace_s)
        for flight in flights:
            if flight.task in late:
                flight.call_off()
        if late:
            await asyncio.wait(late)

    def _forget(self, key: str | None, flight: Flight[T]) -> None:
        self._all.discard(flight)
        if key is not None and self._flights.get(key) is flight:
            del self._flights[key]
