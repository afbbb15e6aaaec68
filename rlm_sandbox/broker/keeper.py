"""Where answers are kept: one SQLite file under ``home/cache``, written by one thread, read by the event loop.

A file for each answer would cost more than the answer is worth: making one takes the file system between 20 and 700 us, and twenty
calls at a time wait for it. Here an answer is a row, and what came while the last rows were committed is committed together.

Nothing is synced at a commit (``synchronous = NORMAL`` in WAL mode): what was kept survives the death of any process, and a power cut costs
at worst the last moments. What the disk refused is paid for all the same: it stays in memory, is found there, and is written with what
comes next. A file that is no database any more is set aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

VERSION = 1
"""Of the file's schema; a file of a newer version is left alone, and answers are kept in memory."""

UNWRITTEN_MAX = 64 * 1024 * 1024
"""Bytes of answers that wait for a disk with room: some ten thousand ordinary ones. Beyond it the oldest are given up."""

BUSY_S = 5.0
"""How long to wait for another process's write, which takes milliseconds."""

USED_S = 600.0
"""How old the note of an answer's last use may be: bounds are stated in days, and a note is a write."""

BATCH = 200
"""Answers that a sweep removes in one transaction: some milliseconds in which nobody else writes."""

DOWN_TO = 0.9
"""Of the size that is allowed, once it is exceeded; else every few answers would cost another sweep."""

_SCHEMA = f"""
    CREATE TABLE answers (
        scope TEXT NOT NULL,
        key TEXT NOT NULL,
        used REAL NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (scope, key)
    );
    CREATE INDEX answers_by_use ON answers (used);
    PRAGMA user_version = {VERSION};
"""

_Place = tuple[str, str]
"""Scope and key."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, in answers and in bytes of the file."""

    removed: int
    kept: int
    kept_bytes: int


@dataclass(slots=True)
class _Job:
    """An answer to keep, or else something to do."""

    place: _Place | None = None
    data: bytes = b""
    future: asyncio.Future[int] | None = None
    work: Callable[[sqlite3.Connection], None] | None = None


class Keeper:
    """The file, its thread and what could not be written. ``find`` and ``submit`` are used on one event loop; begins with the first answer."""

    def __init__(self, home: Path) -> None:
        self._path = home / "cache" / "answers.db"
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._reader: sqlite3.Connection | None = None
        self._unwritten: dict[_Place, bytes] = {}

    def find(self, scope: str, key: str) -> bytes | None:
        """Return what was kept, or None. Reads one row; short enough for the event loop."""
        waiting = self._unwritten.get((scope, key))
        if waiting is not None:
            return waiting
        try:
            if self._reader is None:
                if not self._path.exists():
                    return None
                self._reader = _open(self._path)
            row = self._reader.execute(
                "SELECT body, used FROM answers WHERE scope = ? AND key = ?", (scope, key)
            ).fetchone()
        except (sqlite3.Error, OSError) as error:
            log.warning("the kept answers cannot be read (%s); this one is bought again", error)
            self._drop_reader()
            return None
        if row is None:
            return None
        body, used = row
        if time.time() - used > USED_S:
            self._do(lambda db: _note_use(db, scope, key))
        return bytes(body)

    def submit(self, scope: str, key: str, data: bytes) -> asyncio.Future[int]:
        """Queue an answer; the future gives its bytes once it is committed, or the OSError that keeps it in memory."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._put(_Job((scope, key), data, future))
        return future

    def discard(self, scope: str, key: str) -> None:
        """Remove an answer that turned out to be damaged."""
        self._unwritten.pop((scope, key), None)
        self._do(lambda db: _discard(db, scope, key))

    def forget(self, scope: str) -> bool:
        """Remove every trace of a scope; False when there was none. Blocks.

        Raises:
            OSError: the file cannot be written.
        """
        waiting = [place for place in list(self._unwritten) if place[0] == scope]
        for place in waiting:
            self._unwritten.pop(place, None)
        if not self._path.exists():
            return bool(waiting)
        with _as_oserror(), contextlib.closing(_open(self._path)) as db:
            found = db.execute("DELETE FROM answers WHERE scope = ?", (scope,)).rowcount
            _shrink(db)
        return bool(found or waiting)

    def sweep(self, *, bytes_max: int, age_s: float) -> Swept:
        """Remove what nobody used for so long, then what was used longest ago while there is too much. Blocks; others go on meanwhile.

        Raises:
            OSError: the file cannot be written.
        """
        if not self._path.exists():
            return Swept(0, 0, 0)
        with _as_oserror(), contextlib.closing(_open(self._path)) as db:
            removed = _remove(db, lambda: True, older_than=time.time() - age_s)
            if _size(db) > bytes_max:
                removed += _remove(db, lambda: _size(db) > bytes_max * DOWN_TO)
            if removed:
                _shrink(db)
            (kept,) = db.execute("SELECT count(*) FROM answers").fetchone()
            return Swept(removed, kept, _size(db))

    async def aclose(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        self._drop_reader()

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _do(self, work: Callable[[sqlite3.Connection], None]) -> None:
        self._put(_Job(work=work))

    def _put(self, job: _Job) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="rlm-keeper", daemon=True)
            self._thread.start()
        self._queue.put(job)

    # What only the thread runs.

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        going = True
        while going:
            jobs = list(self._gather())
            going = jobs[-1] is not None
            asked = [job for job in jobs if job is not None]
            failure: OSError | None = None
            try:
                with _as_oserror():
                    db = db or _open(self._path)
                    self._commit(db, asked)
            except OSError as error:
                failure = error
                if db is not None:
                    db.close()
                db = None
            self._tell(asked, failure)
        if db is not None:
            db.close()

    def _gather(self) -> Iterator[_Job | None]:
        """Yield what is queued, at least one; None is the last."""
        job = self._queue.get()
        yield job
        while job is not None and not self._queue.empty():
            job = self._queue.get()
            yield job

    def _commit(self, db: sqlite3.Connection, jobs: list[_Job]) -> None:
        late = list(self._unwritten.items())
        now = time.time()
        db.execute("BEGIN IMMEDIATE")
        try:
            for (scope, key), data in [*late, *((job.place, job.data) for job in jobs if job.place is not None)]:
                db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (scope, key, now, data))
            for job in jobs:
                if job.work is not None:
                    job.work(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.rollback()
            raise
        for place, data in late:
            if self._unwritten.get(place) is data:
                self._unwritten.pop(place, None)

    def _tell(self, jobs: list[_Job], failure: OSError | None) -> None:
        if failure is not None:
            self._unwritten.update((job.place, job.data) for job in jobs if job.place is not None)
            while sum(map(len, self._unwritten.values())) > UNWRITTEN_MAX:
                self._unwritten.pop(next(iter(self._unwritten)))
        outcomes = [(job.future, failure or len(job.data)) for job in jobs if job.future is not None]
        if outcomes and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, outcomes)


def _resolve(outcomes: list[tuple[asyncio.Future[int], int | OSError]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, OSError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


@contextlib.contextmanager
def _as_oserror() -> Iterator[None]:
    """Tell every failure of the file as the operating system's: full, locked, read-only, not a folder."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, made where it is missing, for its owner only. What is damaged is set aside once."""
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise  # full, locked, unreadable: nothing is wrong with what is in it
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged")
        log.warning("the kept answers are damaged (%s) and set aside as %s; they are bought again", error, aside)
        path.replace(aside)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    for folder in (path.parent.parent, path.parent):  # parents=True would make the upper one for everybody
        folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(
        FileExistsError
    ):  # only where it is new: closing any descriptor of it would drop this process's locks
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    if _version(db) == 0:
        db.execute("BEGIN IMMEDIATE")
        if _version(db) == 0:  # nobody was quicker
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
        db.execute("COMMIT")
    if _version(db) != VERSION:
        raise sqlite3.OperationalError(f"{_version(db)} is a newer version of the kept answers")


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _note_use(db: sqlite3.Connection, scope: str, key: str) -> None:
    db.execute("UPDATE answers SET used = ? WHERE scope = ? AND key = ?", (time.time(), scope, key))


def _discard(db: sqlite3.Connection, scope: str, key: str) -> None:
    db.execute("DELETE FROM answers WHERE scope = ? AND key = ?", (scope, key))


def _remove(db: sqlite3.Connection, more: Callable[[], bool], *, older_than: float | None = None) -> int:
    """Remove what was used longest ago, in small transactions, as long as there is such and ``more`` of it is to go."""
    where, values = ("", ()) if older_than is None else ("WHERE used < ?", (older_than,))
    doomed = f"SELECT rowid FROM answers {where} ORDER BY used LIMIT {BATCH}"  # noqa: S608 - both parts are ours
    removed = 0
    while more():
        count = db.execute(f"DELETE FROM answers WHERE rowid IN ({doomed})", values).rowcount  # noqa: S608 - as above
        removed += count
        if count == 0:
            break
    return removed


def _size(db: sqlite3.Connection) -> int:
    """Return the bytes that answers take in the file, without what was freed."""
    (pages,), (free,), (page,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page)


def _shrink(db: sqlite3.Connection) -> None:
    """Give freed space back, and leave nothing of what is gone in the log of writes."""
    db.executescript("PRAGMA incremental_vacuum")  # execute() takes one step, which is one page
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
