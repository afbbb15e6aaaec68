"""Warnings of an account: at 80 per cent of each cap, and at the token count that the user named. Each comes once."""

from __future__ import annotations

from typing import Any

WARN_AT = 80
"""Per cent of a cap at which its one warning is given."""

BITS = {"calls": 1, "tokens": 2, "micro": 4, "token_warning": 8}
"""Bits of ``accounts.warned``."""


def due(row: dict[str, Any]) -> set[str]:
    """Return the names of the warnings whose threshold is reached."""
    spent = _spent(row)
    reached = {
        axis
        for axis, cap in (("calls", "calls_cap"), ("tokens", "tokens_cap"), ("micro", "micro_cap"))
        if row[cap] is not None and spent[axis] * 100 >= row[cap] * WARN_AT
    }
    if row["token_warning"] is not None and spent["tokens"] >= row["token_warning"]:
        reached.add("token_warning")
    return reached


def text(name: str, row: dict[str, Any]) -> str:
    """Return the one line of a warning."""
    spent = _spent(row)
    mark = f"({WARN_AT}% of the limit is reached)"
    if name == "token_warning":
        return f"{spent['tokens']} tokens are spent; the warning was set at {row['token_warning']}"
    if name == "micro":
        return f"${spent['micro'] / 1e6:.4f} of ${row['micro_cap'] / 1e6:.4f} are spent {mark}"
    return f"{spent[name]} of {row[f'{name}_cap']} {name} are spent {mark}"


def _spent(row: dict[str, Any]) -> dict[str, int]:
    return {
        "calls": row["calls"],
        "tokens": row["tokens_in"] + row["tokens_out"] + row["tokens_unreported"],
        "micro": row["micro"],
    }
