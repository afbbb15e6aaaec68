"""What was spent, what is held, and the proof of both.

``spent + held <= cap`` at every instant, on every axis, for the session and for the host's day, in one transaction: a hold of
an attempt's worst case is durable before its first byte leaves, and is replaced by what the provider reported when that
is known. What stays unknown (a reset, a crash) is charged at the full hold. An attempt has one open state, ``sent``: between
the commit of its hold and the first byte lies nothing to wait for, so a second durable mark would buy only a crash window
of microseconds with an fsync per call.

Every change is also an event, and every sum can be re-derived from the events alone (:meth:`Ledger.verify`). Integers only: tokens,
micro-USD, milliseconds. Several processes may share the file; each finds the dead ones' open attempts and charges them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import audit
from rlm_sandbox.broker.book import Charge, Outbound, Worst
from rlm_sandbox.broker.migrations import migrate
from rlm_sandbox.broker.owners import Owner, is_alive
from rlm_sandbox.broker.writer import LedgerUnavailable, Writer, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rlm_sandbox.broker.book import Book, Hit, Row
    from rlm_sandbox.broker.types import Limits

BUSY_S = 5.0
"""How long to wait for another process's transaction. Ours take some 30 ms at most; beyond this something is stuck."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A committed hold: the right to make one attempt."""

    attempt: int
    worst: Worst


class Ledger:
    """The asynchronous face; every method's work runs in the writer's thread, inside one transaction."""

    def __init__(self, path: Path, owner: Owner, clock: Callable[[], float], busy_s: float) -> None:
        self._path = path
        self._owner = owner
        self._owners = path.parent / "owners"
        self._clock = clock
        self._busy_s = busy_s
        self._day_cap: int | None = None
        self._writer = Writer(path, busy_s=busy_s)
        self._log = f"{path}-wal"
        self._read: dict[int, tuple[tuple[int, ...], Row]] = {}

    @classmethod
    async def open(cls, home: Path, *, clock: Callable[[], float] = time.time, busy_s: float = BUSY_S) -> Ledger:
        """Open ``home/ledger.db``, migrate it, and charge what dead processes left open.

        Raises:
            LedgerUnavailable: the file cannot be written, or a newer version made it.
        """
        path = await asyncio.to_thread(_private_file, home)
        ledger = cls(path, Owner(home / "owners"), clock, busy_s)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(ledger.aclose)
            try:
                await ledger._writer.submit(lambda book: migrate(book.db))
            except LookupError as error:
                raise LedgerUnavailable(
                    f"{path} was written by a newer version ({error})", hint="upgrade rlm-sandbox, or use another home"
                ) from error
            await ledger._writer.submit(ledger._enter)
            await ledger.recover()
            undo.pop_all()
        return ledger

    @property
    def owner(self) -> str:
        """The id of this process's claim: what it starts carries it, so that orphans can be told (see ``owners``)."""
        return self._owner.id

    async def aclose(self) -> None:
        """Flush and close. Attempts still open become a dead owner's and are charged by whoever opens next."""
        await self._writer.aclose()
        self._owner.release()

    @property
    def unlanded(self) -> int:
        """Settlements that could not be written yet; their holds stand, and they are tried again."""
        return self._writer.unlanded

    async def open_session(self, name: str, limits: Limits) -> int:
        """Create the session's account, or find it again with what it spent; return its number.

        An account found again keeps its caps, except those that are given differently than when it was opened: a
        restart must not undo a cap that was set in between. The deadline is kept; only ``set_limits`` moves it.
        """
        return await self._writer.submit(lambda book: _open_session(book, f"session:{name}", limits, self._now()))

    async def erase(self, name: str) -> bool:
        """Make a session's account nobody's: its name and what its attempts say about prompts go, its sums stay.

        Returns False when there is no such account.
        """
        return await self._writer.submit(lambda book: _erase(book, f"session:{name}"))

    async def set_day_cap(self, micro: int | None) -> None:
        """Set today's host-wide cap; later days take it when they begin."""
        self._day_cap = micro
        await self._writer.submit(lambda book: book.set_caps(self._day(book), {"micro_cap": micro}, self._now()))

    async def set_limits(self, account: int, changes: Mapping[str, int | None]) -> None:
        """Set caps by column name. A cap may go below what is spent: then nothing more is bought."""
        await self._writer.submit(lambda book: book.set_caps(account, changes, self._now()))

    async def hold(self, account: int, worst: Worst, outbound: Outbound) -> Hold:
        """Hold the worst case, durably. When this is cancelled, the hold is given back if it was made.

        Raises:
            HoldRefused: it does not fit.
            LedgerUnavailable: it could not be written.
        """

        def work(book: Book) -> Hold:
            accounts = (account, self._day(book))
            return Hold(book.hold(accounts, self._owner.id, worst, outbound, self._now()), worst)

        future = self._writer.submit(work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._give_back)
            raise

    def settle(self, hold: Hold, charge: Charge) -> asyncio.Future[list[str]]:
        """Replace a hold by its charge; the future gives the warnings that became due.

        The order is placed at once, so nothing that happens to the caller afterwards can undo it.
        """
        now = self._now()
        return _noted(self._writer.submit(lambda book: book.settle(hold.attempt, charge, now), must_land=True))

    def release(self, hold: Hold, outcome: str, request_id: str | None = None) -> asyncio.Future[None]:
        """Give a hold back: the provider refused before anything could be billed, or nothing was sent."""
        now = self._now()
        return _noted(
            self._writer.submit(lambda book: book.release(hold.attempt, outcome, request_id, now), must_land=True)
        )

    def count_cached(self, account: int, hit: Hit | None = None) -> asyncio.Future[None]:
        """Count an answer that cost nothing."""
        now = self._now()
        return _noted(self._writer.submit(lambda book: book.count_cached(account, now, hit)))

    async def recover(self) -> int:
        """Charge every open attempt of a dead owner in full; return how many there were."""
        return await self._writer.submit(self._recover)

    async def account(self, account: int) -> Row:
        """Return the account's row after everything queued before is written."""
        before = self._state()
        known = self._read.get(account)
        if before is None or known is None or known[0] != before:
            row = await self._writer.submit(lambda book: book.account(account), writes=False)
            if before is not None and before == self._state():
                self._read[account] = before, row
            return dict(row)
        return dict(known[1])

    def _state(self) -> tuple[int, ...] | None:
        """Return what changes with every write of this process (its orders) and of others (the log's file); None while that is unsettled.

        A row that was read holds while this stands: every cell's document shows the account, and a question to the
        writer's thread would be a tenth of a small cell's time.
        """
        try:
            log = os.stat(self._log)  # noqa: PTH116 - on the way of every cell
        except OSError:
            return None
        return None if self._writer.unlanded else (self._writer.orders, log.st_size, log.st_mtime_ns)

    async def history(self, account: int, limit: int) -> list[Row]:
        """Return the latest attempts, newest first."""
        query = "SELECT * FROM attempts WHERE account = ? ORDER BY id DESC LIMIT ?"
        return await self._writer.submit(
            lambda book: [dict(row) for row in book.db.execute(query, (account, limit))], writes=False
        )

    async def hits(self, account: int, limit: int) -> list[Row]:
        """Return the latest calls that were answered for free, newest first."""
        query = "SELECT * FROM hits WHERE account = ? ORDER BY id DESC LIMIT ?"
        return await self._writer.submit(
            lambda book: [dict(row) for row in book.db.execute(query, (account, limit))], writes=False
        )

    async def find(self, name: str) -> int | None:
        """Return the number of a session's account, also of one that ended."""
        return await self._writer.submit(lambda book: book.find(f"session:{name}"), writes=False)

    async def verify(self, account: int) -> dict[str, Any]:
        """Re-derive every sum of the account and of its days from the events, and compare; see :mod:`.audit`."""

        def work() -> dict[str, Any]:
            with contextlib.closing(connect(self._path, busy_s=self._busy_s)) as db:
                return audit.verify(db, account)

        await self.account(account)  # everything queued before has been written then
        return await asyncio.to_thread(work)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _enter(self, book: Book) -> None:
        book.db.execute("INSERT INTO owners VALUES (?, ?, ?)", (self._owner.id, os.getpid(), self._now()))

    def _give_back(self, future: asyncio.Future[Hold]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.release(future.result(), "cancelled")

    def _day(self, book: Book) -> int:
        now = self._now()
        name = f"day:{datetime.fromtimestamp(now / 1000, UTC):%Y-%m-%d}"
        found = book.find(name)
        return book.add_account(name, "day", {"micro_cap": self._day_cap}, now) if found is None else found

    def _recover(self, book: Book) -> int:
        db, count = book.db, 0
        owners = [row["owner"] for row in db.execute("SELECT DISTINCT owner FROM attempts WHERE state = 'sent'")]
        for owner in owners:
            if owner == self._owner.id or is_alive(self._owners, owner):
                continue
            query = "SELECT id FROM attempts WHERE owner = ? AND state = 'sent'"
            for (attempt,) in db.execute(query, (owner,)).fetchall():
                book.settle(attempt, Charge("crash"), self._now(), state="lost")
                count += 1
        return count


def _open_session(book: Book, name: str, limits: Limits, now: int) -> int:
    caps: dict[str, Any] = {
        "calls_cap": limits.calls,
        "tokens_cap": limits.tokens,
        "micro_cap": limits.cost_micro,
        "token_warning": limits.token_warning,
    }
    given = json.dumps(caps)
    deadline = None if limits.deadline is None else int(limits.deadline * 1000)
    number = book.find(name)
    if number is None:
        return book.add_account(name, "session", {**caps, "deadline_ms": deadline, "limits_given": given}, now)
    row = book.account(number)
    before = json.loads(row["limits_given"])
    changes = {column: value for column, value in caps.items() if before.get(column) != value}
    if row["deadline_ms"] is None and deadline is not None:
        changes["deadline_ms"] = deadline
    if changes:
        book.set_caps(number, {**changes, "limits_given": given}, now)
    return number


def _erase(book: Book, name: str) -> bool:
    number = book.find(name)
    if number is None:
        return False
    attempts = "UPDATE attempts SET request_key = '', prompt_sha256 = '', destination = '', request_id = NULL WHERE account = ?"
    book.db.execute(attempts, (number,))
    book.db.execute("DELETE FROM hits WHERE account = ?", (number,))
    book.db.execute("UPDATE accounts SET name = 'forgotten:' || hex(randomblob(16)) WHERE id = ?", (number,))
    return True


def _private_file(home: Path) -> Path:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / "ledger.db"
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    return path


def _noted(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Mark a failure as seen: whoever does not await this future has nothing to do about it."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
