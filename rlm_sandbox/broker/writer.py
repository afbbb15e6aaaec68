"""One thread that owns the ledger's connection and commits in groups.

Everything queued while the last commit was being flushed goes into the next transaction, so that five hundred concurrent
holds share a handful of fsyncs. A job either happened durably before its future resolves, or it did not happen at all. One
that refuses changes nothing; one that the schema refuses makes the group be undone and each job be tried alone, so that
no job fails for another's sake.

A job marked ``must_land`` states a fact that cannot be undone (money was spent). Its future still fails, so that nobody waits
for a broken disk, but the job is kept and goes first in the next transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rlm_sandbox.broker.book import Book
from rlm_sandbox.errors import PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

GROUP_MAX = 512
"""Jobs in one transaction: at about 50 us each it keeps the write lock for some 30 ms, which other processes wait for."""

RETRY_S = 1.0
"""How often facts that did not land are tried again when nothing else is being written."""


class LedgerUnavailable(PrerequisiteError):  # noqa: N818 - names the fact
    """The ledger could not be written, so nothing may be bought."""


@dataclass(slots=True)
class _Job:
    work: Callable[[Book], Any]
    future: asyncio.Future[Any] | None
    writes: bool = True
    must_land: bool = False


def connect(path: Path, *, busy_s: float) -> sqlite3.Connection:
    """Open the database with durability settings; transactions are explicit."""
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class Writer:
    """The thread, its queue and its connection. ``submit`` is called on the event loop's thread only."""

    def __init__(self, path: Path, *, busy_s: float) -> None:
        self._path = path
        self._busy_s = busy_s
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unlanded: list[_Job] = []
        self.unlanded = 0
        """Facts that could not be written yet."""
        self.orders = 0
        """How many writing jobs were ever queued: while it stays the same and nothing is unlanded, what was read stands."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rlm-ledger", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Book], T], *, writes: bool = True, must_land: bool = False) -> asyncio.Future[T]:
        """Queue a job at once; the future resolves after its commit, or raises what the job or the commit raised."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(LedgerUnavailable("the ledger is closed"))
        else:
            self.orders += writes
            self._queue.put(_Job(work, future, writes, must_land))
        return future

    async def aclose(self) -> None:
        """Write what is queued and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        going = True
        while going:
            jobs, going = self._gather()
            writes = [job for job in jobs if job.writes]
            try:
                connection = connection or self._connect()
                outcomes = self._transact(connection, writes)
                self.unlanded = 0
            except sqlite3.Error as error:
                outcomes = self._failed(connection, writes, error)
            outcomes += [self._read(job, connection) for job in jobs if not job.writes]
            self._publish(outcomes)
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path, busy_s=self._busy_s)
        connection.execute("PRAGMA busy_timeout = 0")  # see _begin
        return connection

    def _gather(self) -> tuple[list[_Job], bool]:
        jobs, self._unlanded = self._unlanded, []
        try:
            job = self._queue.get(timeout=RETRY_S if jobs else None)
            while job is not None:
                jobs.append(job)
                if len(jobs) >= GROUP_MAX:
                    return jobs, True
                job = self._queue.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _transact(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[tuple[_Job, Any, Exception | None]]:
        if not jobs:
            return []
        try:
            self._begin(connection)
            book = Book(connection)
            outcomes = [self._attempt(job, book) for job in jobs]
            book.flush()
            connection.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            connection.rollback()
            if len(jobs) == 1:
                return [(jobs[0], None, error)]
            return [outcome for job in jobs for outcome in self._transact(connection, [job])]
        return outcomes

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Take the write lock.

        SQLite's own waiting sleeps up to 100 ms at a time, which starves all but one of several processes; a transaction
        takes a few milliseconds, so asking again after about one is both fairer and quicker.
        """
        give_up = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                    raise
                time.sleep(random.uniform(0.0005, 0.0015))  # noqa: S311 - spreads the processes, no secret
            else:
                return

    @staticmethod
    def _attempt(job: _Job, book: Book) -> tuple[_Job, Any, Exception | None]:
        try:
            return job, job.work(book), None
        except sqlite3.Error:
            raise  # decided for the whole transaction
        except Exception as error:  # noqa: BLE001 - carried to the future of whoever asked, never swallowed
            return job, None, error

    def _read(self, job: _Job, connection: sqlite3.Connection | None) -> tuple[_Job, Any, Exception | None]:
        if connection is None:
            return job, None, self._unavailable(sqlite3.OperationalError("it cannot be opened"))
        try:
            return self._attempt(job, Book(connection))
        except sqlite3.Error as error:
            return job, None, self._unavailable(error)

    def _unavailable(self, error: sqlite3.Error) -> LedgerUnavailable:
        refusal = LedgerUnavailable(
            f"the ledger cannot be used ({error}); nothing is bought while that lasts",
            hint=f"restore {self._path} from a copy, or move it away: the account then begins anew"
            if _is_damage(error)
            else f"free space on the disk of {self._path.parent}, or end the process that locks {self._path.name}",
        )
        refusal.__cause__ = error
        return refusal

    def _failed(
        self, connection: sqlite3.Connection | None, jobs: list[_Job], error: sqlite3.Error
    ) -> list[tuple[_Job, Any, Exception | None]]:
        if connection is not None and connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some disk errors
                connection.rollback()
        self._unlanded = [_Job(job.work, None, must_land=True) for job in jobs if job.must_land]
        self.unlanded = len(self._unlanded)
        return [(job, None, self._unavailable(error)) for job in jobs]

    def _publish(self, outcomes: list[tuple[_Job, Any, Exception | None]]) -> None:
        told = [(job.future, value, error) for job, value, error in outcomes if job.future is not None]
        if told and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, told)


def _is_damage(error: sqlite3.Error) -> bool:
    """Tell whether waiting and space would not help: the file is no ledger of ours, or not any more."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def _resolve(told: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, value, error in told:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
