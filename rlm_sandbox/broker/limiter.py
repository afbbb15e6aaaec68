"""Whose turn it is. Four widths bind at once (batch, session, lane, host) and sessions take turns.

Within a session its batches take turns, within a batch the order is the program's. A slot is held for one attempt only:
never while a call backs off, waits for the prompt cache or for its children. What waits here holds no money either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rlm_sandbox.broker.lanes import Lane


class GateClosed(Exception):  # noqa: N818 - an outcome, not a defect
    """The provider asked to wait beyond the call's deadline."""


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[None]
    deadline: float


@dataclass(slots=True)
class _Group:
    number: int
    width: int
    queued: bool = False
    in_flight: int = 0
    waiters: deque[_Waiter] = field(default_factory=deque)

    def ready(self) -> bool:
        while self.waiters and self.waiters[0].future.done():
            self.waiters.popleft()
        return bool(self.waiters) and (self.width <= 0 or self.in_flight < self.width)


@dataclass(slots=True)
class _Session:
    width: int
    lane: Lane
    in_flight: int = 0
    queued: bool = False
    groups: dict[int, _Group] = field(default_factory=dict)
    turn: deque[_Group] = field(default_factory=deque)

    def next(self) -> _Group | None:
        """Return the group whose turn it is, if one can go."""
        if self.in_flight >= self.width or not self.lane.admits():
            return None
        for _ in range(len(self.turn)):
            group = self.turn.popleft()
            if group.ready():
                self.turn.append(group)
                return group
            group.queued = bool(group.waiters)
            if group.queued:
                self.turn.append(group)
            self.forget_if_idle(group)
        return None

    def join(self, number: int, width: int, waiter: _Waiter) -> _Group:
        """Queue a waiter in its group."""
        group = self.groups.get(number)
        if group is None:
            group = self.groups[number] = _Group(number, width)
        group.waiters.append(waiter)
        if not group.queued:
            group.queued = True
            self.turn.append(group)
        return group

    def forget_if_idle(self, group: _Group) -> None:
        """Drop a group that nothing refers to: their numbers are the guest's, and need never come again."""
        if not (group.in_flight or group.queued or group.waiters) and self.groups.get(group.number) is group:
            del self.groups[group.number]


class Slot:
    """The right to one request in flight. ``release`` may come early and twice."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the slot to the next one."""
        if self._release is not None:
            release, self._release = self._release, None
            release()


class Limiter:
    """The queue of one broker; used on one event loop."""

    def __init__(self, host_width: int) -> None:
        self._width = host_width
        self._in_flight = 0
        self._sessions: dict[str, _Session] = {}
        self._turn: deque[str] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    def add_session(self, name: str, width: int, lane: Lane) -> None:
        """Let a session take part."""
        self._sessions[name] = _Session(max(1, width), lane)

    def remove_session(self, name: str) -> None:
        """Forget a session; whoever still waits for a slot is cancelled."""
        session = self._sessions.pop(name, None)
        for group in session.groups.values() if session else ():
            for waiter in group.waiters:
                waiter.future.cancel()

    @asynccontextmanager
    async def slot(self, name: str, group: int, width: int, deadline: float) -> AsyncIterator[Slot]:
        """Hold one slot. ``deadline`` is loop time.

        Raises:
            GateClosed: the lane will not admit anything before the deadline.
            TimeoutError: no slot came free in time.
        """
        session = self._sessions[name]
        batch = await self._enter(name, session, group, width, deadline)
        slot = Slot(lambda: self._leave(session, batch))
        try:
            yield slot
        finally:
            slot.release()

    async def _enter(self, name: str, session: _Session, number: int, width: int, deadline: float) -> _Group:
        if session.lane.hopeless(deadline):
            raise GateClosed
        waiter = _Waiter(asyncio.get_running_loop().create_future(), deadline)
        group = session.join(number, width, waiter)
        if not session.queued:
            session.queued = True
            self._turn.append(name)
        self.dispatch()
        try:
            async with asyncio.timeout_at(deadline):
                await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._leave(session, group)
            raise
        return group

    def _leave(self, session: _Session, group: _Group) -> None:
        self._in_flight -= 1
        session.in_flight -= 1
        session.lane.in_flight -= 1
        group.in_flight -= 1
        session.forget_if_idle(group)
        self.dispatch()

    def dispatch(self) -> None:
        """Grant every slot that can be granted. Called whenever something changed."""
        idle = 0
        while self._in_flight < self._width and idle < len(self._turn):
            name = self._turn.popleft()
            session = self._sessions.get(name)
            if session is None:
                continue
            group = session.next()
            session.queued = bool(session.turn)
            if session.queued:
                self._turn.append(name)
                idle += 1
            if group is not None:
                idle = 0
                self._grant(session, group)
        self._wake_at_gates()

    def _grant(self, session: _Session, group: _Group) -> None:
        waiter = group.waiters.popleft()
        self._in_flight += 1
        session.in_flight += 1
        session.lane.in_flight += 1
        group.in_flight += 1
        waiter.future.set_result(None)

    def gate_moved(self, lane: Lane) -> None:
        """Fail those who cannot be admitted before their deadline any more."""
        for session in self._sessions.values():
            if session.lane is not lane:
                continue
            for group in session.groups.values():
                for waiter in group.waiters:
                    if not waiter.future.done() and lane.hopeless(waiter.deadline):
                        waiter.future.set_exception(GateClosed())
        self.dispatch()

    def _wake_at_gates(self) -> None:
        """Come back when the first closed gate that somebody waits at is lifted."""
        loop = asyncio.get_running_loop()
        waiting = (self._sessions[name] for name in self._turn if name in self._sessions)
        lifts = [session.lane.lift_at for session in waiting if session.lane.lift_at > loop.time()]
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(min(lifts), self.dispatch) if lifts else None
