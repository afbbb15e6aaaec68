"""One container's channel on asyncio: bytes between the attached stdio and the pure state machine.

Reading never stops while the container lives (the engine blocks a guest whose output nobody drains); a violation of the grammar, from
whatever depth, becomes one :class:`ProtocolError` and the end of this session.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rlm_sandbox.errors import ProtocolError
from rlm_sandbox.wire.connection import HostConnection
from rlm_sandbox.wire.frames import FrameError
from rlm_sandbox.wire.messages import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_sandbox.container.attach import Container
    from rlm_sandbox.wire.messages import Hello, Message

HANDSHAKE_S = 60.0
"""A hardened container answers in under 0.5 s; a minute is a host under extreme load, or a guest that will never answer."""


TURN = 100
"""Messages of one session in a row: 2 ms of work, so that twenty floods delay an honest session by 40 ms and not by seconds."""

RATE = 10_000
"""Messages a second that a guest may keep up: a fifth of what one core parses. Calls answered from the cache, the fastest honest
traffic, make a few thousand."""

BURST = 20_000
"""Messages above the rate that come through at once: a batch of 5,000 prompts with all that belongs to it."""


class Pace:
    """Counts the messages of one guest; ``take`` says how long to pause after this one: None, 0 to let others run, or seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._room = float(BURST)
        self._at = clock()
        self._turn = 0

    def take(self) -> float | None:
        """Count one message."""
        self._turn += 1
        if self._turn < TURN:
            return None
        now = self._clock()
        self._room = min(float(BURST), self._room + (now - self._at) * RATE) - self._turn
        self._at, self._turn = now, 0
        return max(0.0, -self._room / RATE)


class Channel:
    """Send and receive messages of one container."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.connection = HostConnection()

    async def greet(self, hello: Hello) -> Report:
        """Say hello and return the guest's report on its own confinement."""
        self.send(hello)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                while True:
                    for message in self._messages(await self._read()):
                        if isinstance(message, Report):
                            return message
        except TimeoutError:
            raise ProtocolError(
                f"the guest did not report within {HANDSHAKE_S:.0f} s",
                hint="look at `docker events` and the load of the host",
            ) from None

    async def _read(self) -> bytes:
        data = await self.container.read()
        if not data:
            tail = self.container.stderr_tail.strip()
            raise ProtocolError(
                "the container ended" + (f": {tail.splitlines()[-1][:200]}" if tail else ""),
                hint="it was killed from outside, or its image does not fit this version (`rlm-sandbox image build`)",
            )
        return data

    def _messages(self, data: bytes) -> Iterator[Message]:
        try:
            yield from self.connection.receive(data)
        except FrameError as exc:
            raise ProtocolError(
                f"the guest broke the channel's rules: {exc}",
                hint="code in the session tampered with the channel; start a new session",
            ) from exc

    async def run(self, handle: Callable[[Message], None]) -> None:
        """Pass every message to ``handle`` until the channel ends, which it always does by raising :class:`ProtocolError`.

        One loop serves all sessions, so a guest that sends more than it may waits, and nobody else does.
        """
        pace = Pace(time.monotonic)
        while True:
            for message in self._messages(await self._read()):
                handle(message)
                pause = pace.take()
                if pause is not None:
                    await asyncio.sleep(pause)

    def send(self, *messages: Message) -> None:
        """Queue messages. Raises :class:`FrameError` when one may not be sent now, which is a defect of the caller."""
        self.container.write(b"".join(self.connection.send(message) for message in messages))

    async def drain(self) -> None:
        """Wait until the guest has taken enough; raises when it stops reading for too long."""
        await self.container.drain()
