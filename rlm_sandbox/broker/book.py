"""The ledger's arithmetic, as one unit of work: what several operations do to accounts, attempts and events in one transaction.

An operation reads accounts from the book, decides, and changes them in the book; the book writes each touched account once, and
attempts and events in bulk, just before the commit. An operation that refuses does so before its first change, so that the others
in the same transaction are not touched by it. That the sums agree with the caps is checked here and again by the schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import notices
from rlm_sandbox.broker.migrations import SUMS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from rlm_sandbox.broker.types import Usage

AXES: Mapping[str, tuple[tuple[str, ...], str, str, str]] = {
    "calls": (("calls",), "calls_held", "calls_cap", "calls_over"),
    "tokens": (("tokens_in", "tokens_out", "tokens_unreported"), "tokens_held", "tokens_cap", "tokens_over"),
    "micro": (("micro",), "micro_held", "micro_cap", "micro_over"),
}
"""Axis -> columns that make up spent, then held, cap, and what is above the cap."""

Row = dict[str, Any]

_MUTABLE = (*SUMS, "calls_over", "tokens_over", "micro_over", "warned", "latched")
_CAPS = ("calls_cap", "tokens_cap", "micro_cap", "token_warning", "deadline_ms", "limits_given")
_EVENT = ("at_ms", "kind", "account", "day", "attempt", "detail", *SUMS)
_CLOSING = (
    "state",
    "closed_ms",
    "outcome",
    "request_id",
    "tokens_in",
    "tokens_out",
    "cache_reads",
    "cache_writes",
    "micro",
)


@dataclass(frozen=True, slots=True)
class Worst:
    """The most that one attempt can cost."""

    tokens_in: int
    tokens_out: int
    micro: int
    priced: bool = True

    @property
    def tokens(self) -> int:
        """Return input and output together, which is what a token cap counts."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True, slots=True)
class Outbound:
    """What is recorded of an attempt before it leaves: digests, sizes and the destination, never text."""

    cell: int
    ordinal: int
    number: int
    provider: str
    destination: str
    model: str
    request_key: str
    prompt_sha256: str
    bytes_out: int
    prices: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """What is recorded of a call that was answered for free. ``source``: ``cache``, or ``flight`` (an identical call was being bought)."""

    cell: int
    ordinal: int
    provider: str
    destination: str
    model: str
    request_key: str
    prompt_sha256: str
    bytes: int
    source: str
    tokens_in: int
    tokens_out: int
    request_id: str | None


_HIT = ("account", "at_ms", *(field.name for field in fields(Hit)))
_OUTBOUND = tuple(field.name for field in fields(Outbound))


@dataclass(frozen=True, slots=True)
class Charge:
    """What an attempt came to. ``usage=None`` is unknown, and settles at the full hold."""

    outcome: str
    usage: Usage | None = None
    micro: int = 0
    request_id: str | None = None


class HoldRefused(Exception):  # noqa: N818 - an outcome; the pipeline turns it into BudgetExceeded
    """Nothing was held. ``axis`` is calls, tokens, micro, deadline or latched; ``scope`` is session or day."""

    def __init__(
        self, axis: str, scope: str, *, cap: int = 0, spent: int = 0, held: int = 0, need: int = 0, reason: str = ""
    ) -> None:
        super().__init__(axis, scope)
        self.axis, self.scope, self.reason = axis, scope, reason
        self.cap, self.spent, self.held, self.need = cap, spent, held, need

    @property
    def may_fit_later(self) -> bool:
        """True when attempts now in flight can give back enough for this one."""
        return self.held > 0 and self.spent + self.need <= self.cap


class Book:
    """One transaction's view of the database. Valid between BEGIN and COMMIT only."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._rows: dict[int, Row] = {}
        self._touched: set[int] = set()
        self._attempts: list[Row] = []
        self._closings: dict[int, Row] = {}
        self._events: list[Row] = []
        self._hits: list[Row] = []
        self._last_attempt = -1

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for what is rare enough to be written directly; pending changes are written first."""
        self.flush()
        self._rows.clear()
        self._last_attempt = -1
        return self._db

    def account(self, number: int) -> Row:
        """Return an account's row as it stands in this transaction."""
        if number not in self._rows:
            self._rows[number] = dict(self._db.execute("SELECT * FROM accounts WHERE id = ?", (number,)).fetchone())
        return self._rows[number]

    def find(self, name: str) -> int | None:
        """Return the number of the account of that name."""
        row = self._db.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row["id"])

    def add_account(self, name: str, kind: str, caps: Mapping[str, Any], now: int) -> int:
        """Open an account."""
        number = _insert(self.db, "accounts", {"name": name, "kind": kind, "opened_ms": now, **caps})
        self._event("open", number, None, {}, now, detail=json.dumps(dict(caps)))
        return number

    def set_caps(self, number: int, changes: Mapping[str, Any], now: int) -> None:
        """Set caps by column name; below what is spent, nothing more is bought."""
        row = self.account(number)
        row.update(changes)
        reached = notices.due(row)
        row["warned"] = sum(bit for name, bit in notices.BITS.items() if row["warned"] & bit and name in reached)
        row.update(_overs(row))
        sets = ", ".join(f"{name} = ?" for name in (*_CAPS, *_MUTABLE))
        values = [row[name] for name in (*_CAPS, *_MUTABLE)]
        self._db.execute(f"UPDATE accounts SET {sets} WHERE id = ?", (*values, number))  # noqa: S608 - own names
        self._event("limits", number, None, {}, now, detail=json.dumps(dict(changes)))

    def hold(self, accounts: tuple[int, int], owner: str, worst: Worst, outbound: Outbound, now: int) -> int:
        """Hold the worst case on the session's and the day's account; return the attempt's number.

        Raises:
            HoldRefused: it does not fit; nothing has changed.
        """
        session, day = self.account(accounts[0]), self.account(accounts[1])
        _refuse_unless_open(session, now)
        need = {"calls": 1, "tokens": worst.tokens, "micro": worst.micro}
        for axis, row, scope in [*((axis, session, "session") for axis in AXES), ("micro", day, "day")]:
            _refuse_unless_fits(row, axis, scope, need[axis])
        attempt = self._next_attempt()
        self._attempts.append(
            {
                "id": attempt,
                "account": accounts[0],
                "day": accounts[1],
                "owner": owner,
                "opened_ms": now,
                "priced": int(worst.priced),
                "held_tokens_in": worst.tokens_in,
                "held_tokens_out": worst.tokens_out,
                "held_micro": worst.micro,
                **{name: getattr(outbound, name) for name in _OUTBOUND},
            }
        )
        delta = {"calls_held": 1, "tokens_held": worst.tokens, "micro_held": worst.micro}
        self._post("hold", accounts, delta, now, attempt=attempt)
        return attempt

    def settle(self, attempt: int, charge: Charge, now: int, *, state: str = "settled") -> list[str]:
        """Replace a hold by its charge; return the warnings that became due. Settling again changes nothing."""
        held = self._open_attempt(attempt)
        if held is None:
            return []
        usage, tokens_held = charge.usage, held["held_tokens_in"] + held["held_tokens_out"]
        closing: Row = {"state": state, "closed_ms": now, "outcome": charge.outcome, "request_id": charge.request_id}
        delta = _give_back(held) | {"calls": 1, "unpriced_calls": 0 if held["priced"] else 1}
        if usage is None:
            closing["micro"] = held["held_micro"]
            delta |= {"tokens_unreported": tokens_held, "micro": held["held_micro"]}
        else:
            reported = {
                "tokens_in": usage.total_in,
                "tokens_out": usage.output_tokens,
                "cache_reads": usage.cache_read_tokens,
                "cache_writes": usage.cache_write_tokens,
                "micro": charge.micro,
            }
            closing |= reported
            delta |= reported
        kind = "settle" if state == "settled" else "lost"
        self._post(kind, (held["account"], held["day"]), delta, now, attempt=attempt, detail=charge.outcome)
        self._closings[attempt] = {"id": attempt, **closing}
        return self._latch(held, charge, now) + self._warn(held["account"])

    def release(self, attempt: int, outcome: str, request_id: str | None, now: int) -> None:
        """Give a hold back whole."""
        held = self._open_attempt(attempt)
        if held is None:
            return
        accounts = (held["account"], held["day"])
        self._post("release", accounts, _give_back(held), now, attempt=attempt, detail=outcome)
        closing = {"state": "released", "closed_ms": now, "outcome": outcome, "request_id": request_id, "micro": 0}
        self._closings[attempt] = {"id": attempt, **closing}

    def count_cached(self, account: int, now: int, hit: Hit | None = None) -> None:
        """Count an answer that cost nothing, and record it where it is known."""
        self._post("cached", (account, None), {"cached_calls": 1}, now)
        if hit is not None:
            named = {field.name: getattr(hit, field.name) for field in fields(Hit)}
            self._hits.append({"account": account, "at_ms": now, **named})

    def flush(self) -> None:
        """Write everything. The schema refuses here what this module should have refused before."""
        if self._attempts:
            _insert_many(self._db, "attempts", tuple(self._attempts[0]), self._attempts)
        if self._touched:
            sets = ", ".join(f"{name} = :{name}" for name in _MUTABLE)
            rows = [self._rows[number] for number in sorted(self._touched)]
            self._db.executemany(f"UPDATE accounts SET {sets} WHERE id = :id", rows)  # noqa: S608 - own names
        if self._closings:
            sets = ", ".join(f"{name} = :{name}" for name in _CLOSING)
            rows = [dict.fromkeys(_CLOSING) | row for row in self._closings.values()]
            self._db.executemany(f"UPDATE attempts SET {sets} WHERE id = :id", rows)  # noqa: S608 - own names
        if self._events:
            _insert_many(self._db, "events", _EVENT, self._events)
        if self._hits:
            _insert_many(self._db, "hits", _HIT, self._hits)
        for pending in (self._attempts, self._touched, self._closings, self._events, self._hits):
            pending.clear()

    def _next_attempt(self) -> int:
        if self._last_attempt < 0:
            self._last_attempt = self._db.execute("SELECT COALESCE(MAX(id), 0) FROM attempts").fetchone()[0]
        self._last_attempt += 1
        return self._last_attempt

    def _open_attempt(self, attempt: int) -> Row | None:
        if attempt in self._closings:
            return None
        query = "SELECT * FROM attempts WHERE id = ? AND state = 'sent'"
        row = self._db.execute(query, (attempt,)).fetchone()
        return None if row is None else dict(row)

    def _post(
        self,
        kind: str,
        accounts: tuple[int, int | None],
        delta: Mapping[str, int],
        now: int,
        *,
        attempt: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Add the same changes to the session's sums, the day's sums and the events."""
        for number in accounts:
            if number is not None:
                row = self.account(number)
                for name, change in delta.items():
                    row[name] += change
                if kind != "hold":
                    row.update(_overs(row))
                self._touched.add(number)
        self._event(kind, *accounts, delta, now, attempt=attempt, detail=detail)

    def _event(
        self,
        kind: str,
        account: int,
        day: int | None,
        delta: Mapping[str, int],
        now: int,
        *,
        attempt: int | None = None,
        detail: str | None = None,
    ) -> None:
        fixed = {"at_ms": now, "kind": kind, "account": account, "day": day, "attempt": attempt, "detail": detail}
        self._events.append(dict.fromkeys(SUMS, 0) | fixed | dict(delta))

    def _latch(self, held: Row, charge: Charge, now: int) -> list[str]:
        reason = _overrun(held, charge)
        row = self.account(held["account"])
        if reason is None or row["latched"]:
            return []
        row["latched"] = reason
        self._event("latch", held["account"], None, {}, now, attempt=held["id"], detail=reason)
        return [f"the session is shut for spending: {reason}"]

    def _warn(self, account: int) -> list[str]:
        row = self.account(account)
        due = sorted(name for name in notices.due(row) if not row["warned"] & notices.BITS[name])
        row["warned"] |= sum(notices.BITS[name] for name in due)
        return [notices.text(name, row) for name in due]


def spent_on(row: Row, axis: str) -> int:
    """Return what an account has spent on an axis."""
    return sum(row[name] for name in AXES[axis][0])


def _overs(row: Row) -> dict[str, int]:
    return {
        over: max(0, spent_on(row, axis) + row[held] - row[cap]) if row[cap] is not None else 0
        for axis, (_, held, cap, over) in AXES.items()
    }


def _overrun(held: Row, charge: Charge) -> str | None:
    if charge.usage is None:
        return None
    tokens = charge.usage.total_in + charge.usage.output_tokens
    tokens_held = held["held_tokens_in"] + held["held_tokens_out"]
    if tokens > tokens_held:
        return f"the provider reported {tokens} tokens for an attempt that could use at most {tokens_held}"
    if charge.micro > held["held_micro"] and held["priced"]:
        return f"an attempt cost ${charge.micro / 1e6:.6f} where at most ${held['held_micro'] / 1e6:.6f} was possible"
    return None


def _give_back(held: Row) -> dict[str, int]:
    tokens = held["held_tokens_in"] + held["held_tokens_out"]
    return {"calls_held": -1, "tokens_held": -tokens, "micro_held": -held["held_micro"]}


def _refuse_unless_open(row: Row, now: int) -> None:
    if row["latched"]:
        raise HoldRefused("latched", "session", reason=row["latched"])
    if row["deadline_ms"] is not None and now >= row["deadline_ms"]:
        raise HoldRefused("deadline", "session", cap=row["deadline_ms"], spent=now)


def _refuse_unless_fits(row: Row, axis: str, scope: str, need: int) -> None:
    _, held, cap, _ = AXES[axis]
    spent = spent_on(row, axis)
    if row[cap] is not None and spent + row[held] + need > row[cap]:
        raise HoldRefused(axis, scope, cap=row[cap], spent=spent, held=row[held], need=need)


def _insert(db: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> int:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    cursor = db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608 - own names
    return int(cursor.lastrowid or 0)


def _insert_many(db: sqlite3.Connection, table: str, names: tuple[str, ...], rows: list[Row]) -> None:
    marks = ", ".join(f":{name}" for name in names)
    db.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)  # noqa: S608 - own names
