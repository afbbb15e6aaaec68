"""A model provider in a thread of the test: every prompt has one right answer, and it is written down when it was asked and answered."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from tests.support.fault_server import FaultServer, Seen, _Wire


def answer_to(prompt: str) -> str:
    """Return the answer that this provider always gives."""
    return f"answer {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


@dataclass
class Asked:
    """One request; ``until`` is when the answer was sent, or None."""

    prompt: str
    since: float
    until: float | None = None


class CountingServer(FaultServer):
    """Use as a context manager; ``asked`` grows while it runs."""

    def __init__(self, *, latency_s: float = 0.02) -> None:
        super().__init__(latency_s=latency_s)
        self.asked: list[Asked] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def _serve(self, seen: Seen, writer) -> bool:
        entry = Asked(seen.prompt, time.monotonic())
        self.asked.append(entry)
        await asyncio.sleep(self.latency_s)
        mine = copy.copy(self)
        mine.answer = answer_to(seen.prompt)
        done = await _Wire(writer, seen, mine).fault_ok() is not False
        entry.until = time.monotonic()
        return done

    def __enter__(self):
        self._thread.start()
        self._on_loop(self.__aenter__())
        return self

    def __exit__(self, *_):
        with suppress(TimeoutError):
            self._on_loop(self.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _on_loop(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
