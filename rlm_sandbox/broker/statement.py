"""How an account is shown: the public budget and its history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import notices
from rlm_sandbox.broker.types import Budget

if TYPE_CHECKING:
    from rlm_sandbox.broker.book import Row

CHANGES = {
    "calls": "calls_cap",
    "tokens": "tokens_cap",
    "token_warning": "token_warning",
    "cost_micro": "micro_cap",
    "deadline": "deadline_ms",
}
"""Limits that the host may set, and the account's column of each."""


def budget_of(row: Row, now: float) -> Budget:
    """Return the public form of an account's row."""
    deadline = row["deadline_ms"]
    return Budget(
        calls=row["calls"],
        limit=row["calls_cap"],
        tokens_in=row["tokens_in"],
        tokens_out=row["tokens_out"],
        cache_reads=row["cache_reads"],
        cache_writes=row["cache_writes"],
        token_limit=row["tokens_cap"],
        token_warning=row["token_warning"],
        warned_tokens=bool(row["warned"] & notices.BITS["token_warning"]),
        cost_micro=row["micro"],
        cost_limit_micro=row["micro_cap"],
        held_micro=row["micro_held"],
        held_calls=row["calls_held"],
        held_tokens=row["tokens_held"],
        cached_calls=row["cached_calls"],
        time_limit_s=None if deadline is None else (deadline - row["opened_ms"]) / 1000,
        time_left_s=None if deadline is None else max(0.0, deadline / 1000 - now),
        latched=row["latched"],
        unreported_tokens=row["tokens_unreported"],
        unpriced_calls=row["unpriced_calls"],
    )


def history_entry(row: Row) -> dict[str, Any]:
    """Return one attempt as a JSON-ready record: digests, sizes and numbers, never text."""
    reported = row["tokens_in"] is not None
    return {
        "at": _iso(row["opened_ms"]),
        "elapsed_ms": None if row["closed_ms"] is None else row["closed_ms"] - row["opened_ms"],
        "cell": row["cell"],
        "ordinal": row["ordinal"],
        "attempt": row["number"],
        "state": row["state"],
        "outcome": row["outcome"],
        "provider": row["provider"],
        "destination": row["destination"],
        "model": row["model"],
        "request_key": row["request_key"],
        "prompt_sha256": row["prompt_sha256"],
        "bytes_out": row["bytes_out"],
        "tokens_in": row["tokens_in"],
        "tokens_out": row["tokens_out"],
        "cache_reads": row["cache_reads"],
        "cache_writes": row["cache_writes"],
        "usage_reported": reported,
        "cost_micro": row["micro"],
        "held_micro": row["held_micro"],
        "priced": bool(row["priced"]),
        "prices": row["prices"],
        "request_id": row["request_id"],
    }


def call_entries(attempts: list[Row], hits: list[Row], limit: int) -> list[dict[str, Any]]:
    """Return the latest calls, newest first: each with its attempts, and those that were answered for free.

    ``attempts`` and ``hits`` are newest first. The attempts of a call have its place, its key and ascending numbers.
    """
    calls: list[list[Row]] = []
    latest: dict[tuple[Any, ...], list[Row]] = {}
    for row in reversed(attempts):
        key = (row["cell"], row["ordinal"], row["request_key"])
        if row["number"] == 1 or key not in latest:
            latest[key] = []
            calls.append(latest[key])
        latest[key].append(row)
    stamped = [(rows[0]["opened_ms"], _bought(rows)) for rows in calls] + [(hit["at_ms"], _free(hit)) for hit in hits]
    stamped.sort(key=lambda pair: pair[0], reverse=True)
    return [entry for _, entry in stamped[:limit]]


def _bought(rows: list[Row]) -> dict[str, Any]:
    first, last = rows[0], rows[-1]
    open_now = last["closed_ms"] is None
    return {
        "at": _iso(first["opened_ms"]),
        "elapsed_ms": None if open_now else last["closed_ms"] - first["opened_ms"],
        "cell": first["cell"],
        "ordinal": first["ordinal"],
        "provider": first["provider"],
        "destination": first["destination"],
        "model": first["model"],
        "outcome": "in_flight" if open_now else last["outcome"],
        "cached": False,
        "source": "provider",
        "tokens_in": _sum(rows, "tokens_in"),
        "tokens_out": _sum(rows, "tokens_out"),
        "cache_reads": _sum(rows, "cache_reads"),
        "cache_writes": _sum(rows, "cache_writes"),
        "cost_usd": _sum(rows, "micro") / 1e6,
        "held_usd": sum(row["held_micro"] for row in rows if row["closed_ms"] is None) / 1e6,
        "bytes_out": first["bytes_out"],
        "prompt_sha256": first["prompt_sha256"],
        "request_key": first["request_key"],
        "request_id": last["request_id"],
        "attempts": [_attempt(row) for row in rows],
    }


def _attempt(row: Row) -> dict[str, Any]:
    return {
        "at": _iso(row["opened_ms"]),
        "elapsed_ms": None if row["closed_ms"] is None else row["closed_ms"] - row["opened_ms"],
        "state": row["state"],
        "outcome": row["outcome"],
        "usage_reported": row["tokens_in"] is not None,
        "cost_usd": None if row["micro"] is None else row["micro"] / 1e6,
        "held_usd": row["held_micro"] / 1e6,
        "priced": bool(row["priced"]),
        "prices": row["prices"],
        "request_id": row["request_id"],
    }


def _free(hit: Row) -> dict[str, Any]:
    """Return a call that was answered for free; the tokens are those of the answer, and nobody was charged for them."""
    names = ("cell", "ordinal", "provider", "destination", "model")
    return {
        "at": _iso(hit["at_ms"]),
        "elapsed_ms": 0,
        **{name: hit[name] for name in names},
        "outcome": "ok",
        "cached": True,
        "source": hit["source"],
        "tokens_in": hit["tokens_in"],
        "tokens_out": hit["tokens_out"],
        "cache_reads": 0,
        "cache_writes": 0,
        "cost_usd": 0.0,
        "held_usd": 0.0,
        "bytes_out": 0,
        "prompt_sha256": hit["prompt_sha256"],
        "request_key": hit["request_key"],
        "request_id": hit["request_id"],
        "attempts": [],
    }


def _sum(rows: list[Row], name: str) -> int:
    return sum(row[name] or 0 for row in rows)


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
