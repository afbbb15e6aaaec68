"""The proof: every sum of an account derived a second time, from the events alone, and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker.migrations import SUMS

if TYPE_CHECKING:
    import sqlite3


def verify(db: sqlite3.Connection, account: int) -> dict[str, Any]:
    """Return ``{ok, account, events, attempts, sums, mismatches}``; a mismatch names account, column and both values.

    Compared are the account and each day it spent on with their events, and the events with the attempts, which record the
    same facts once more.
    """
    db.execute("BEGIN")
    try:
        sums = _derived(db, "account", account)
        days = [row[0] for row in db.execute("SELECT DISTINCT day FROM attempts WHERE account = ?", (account,))]
        mismatches = _differences(db, account, sums) + _attempt_differences(db, account, sums)
        for day in days:
            mismatches += _differences(db, day, _derived(db, "day", day))
        return {
            "ok": not mismatches,
            "account": db.execute("SELECT name FROM accounts WHERE id = ?", (account,)).fetchone()[0],
            "events": _count(db, "events", account),
            "attempts": _count(db, "attempts", account),
            "sums": sums,
            "mismatches": mismatches,
        }
    finally:
        db.execute("ROLLBACK")


def _derived(db: sqlite3.Connection, column: str, account: int) -> dict[str, int]:
    totals = ", ".join(f"COALESCE(SUM({name}), 0) AS {name}" for name in SUMS)
    return dict(db.execute(f"SELECT {totals} FROM events WHERE {column} = ?", (account,)).fetchone())  # noqa: S608 - own names


def _differences(db: sqlite3.Connection, account: int, derived: dict[str, int]) -> list[dict[str, Any]]:
    row = db.execute("SELECT * FROM accounts WHERE id = ?", (account,)).fetchone()
    return [
        {"account": row["name"], "column": name, "recorded": row[name], "derived": derived[name]}
        for name in SUMS
        if row[name] != derived[name]
    ]


def _attempt_differences(db: sqlite3.Connection, account: int, sums: dict[str, int]) -> list[dict[str, Any]]:
    query = """
        SELECT COALESCE(SUM(state IN ('settled', 'lost')), 0) AS calls,
               COALESCE(SUM(state = 'sent'), 0) AS calls_held,
               COALESCE(SUM(CASE WHEN state IN ('settled', 'lost') THEN micro END), 0) AS micro,
               COALESCE(SUM(CASE WHEN state = 'sent' THEN held_micro END), 0) AS micro_held,
               COALESCE(SUM(CASE WHEN state = 'sent' THEN held_tokens_in + held_tokens_out END), 0) AS tokens_held,
               COALESCE(SUM(tokens_in), 0) AS tokens_in, COALESCE(SUM(tokens_out), 0) AS tokens_out
        FROM attempts WHERE account = ?"""
    derived = dict(db.execute(query, (account,)).fetchone())
    return [
        {"account": "attempts", "column": name, "recorded": value, "derived": sums[name]}
        for name, value in derived.items()
        if value != sums[name]
    ]


def _count(db: sqlite3.Connection, table: str, account: int) -> int:
    return int(db.execute(f"SELECT COUNT(*) FROM {table} WHERE account = ?", (account,)).fetchone()[0])  # noqa: S608 - own names
