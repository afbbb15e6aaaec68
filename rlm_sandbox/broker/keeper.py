"""One thread that writes answers to disk, in the order in which they came.

One, because threads share one interpreter: twenty answers at once on a pool of threads cost the event loop more in waiting for its
turn than writing them takes. What was queued while the last files were written is told to the loop together.

What the disk refused is paid for all the same: it stays in memory, is found there, and is written as soon as something else could be.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNWRITTEN_MAX = 64 * 1024 * 1024
"""Bytes of answers that wait for a disk with room: some ten thousand ordinary ones. Beyond it the oldest are given up."""

_Job = tuple["Callable[[], int]", "asyncio.Future[int]"]


class Keeper:
    """The thread and its queue. Used on one event loop; begins with the first answer."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._unwritten: dict[Path, bytes] = {}

    def unwritten(self, path: Path) -> bytes | None:
        """Return what ought to be at a path and could not be written."""
        return self._unwritten.get(path)

    def forget(self, folder: Path) -> bool:
        """Give up what waits to be written below a folder; False when there was nothing."""
        gone = [path for path in list(self._unwritten) if path.is_relative_to(folder)]
        for path in gone:
            self._unwritten.pop(path, None)
        return bool(gone)

    def write(self, path: Path, data: bytes, write: Callable[[Path, bytes], None]) -> None:
        """Write in this thread, and what was refused before; what is refused now is remembered, and the OSError raised."""
        try:
            write(path, data)
        except OSError:
            self._unwritten[path] = data
            while sum(map(len, self._unwritten.values())) > UNWRITTEN_MAX:
                self._unwritten.pop(next(iter(self._unwritten)))
            raise
        self._unwritten.pop(path, None)
        for late, kept in list(self._unwritten.items()):
            try:
                write(late, kept)
            except OSError:
                return
            self._unwritten.pop(late, None)

    def submit(self, write: Callable[[], int]) -> asyncio.Future[int]:
        """Queue a write, which returns its bytes; the future gives them, or the OSError."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="rlm-keeper", daemon=True)
            self._thread.start()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.put((write, future))
        return future

    async def aclose(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self) -> None:
        while True:
            jobs = [self._queue.get()]
            while not self._queue.empty():
                jobs.append(self._queue.get())
            outcomes = [_done(job) for job in jobs if job is not None]
            if outcomes and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_tell, outcomes)
            if None in jobs:
                return


def _done(job: _Job) -> tuple[asyncio.Future[int], int | OSError]:
    write, future = job
    try:
        return future, write()
    except OSError as error:
        return future, error


def _tell(outcomes: list[tuple[asyncio.Future[int], int | OSError]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, OSError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
