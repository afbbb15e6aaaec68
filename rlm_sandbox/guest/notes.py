"""Warnings for the person who reads a cell's result, gathered anywhere in the kernel and sent with the next result.

Kept apart so that the lazy context can say "the input changed" without knowing the kernel.
"""

from __future__ import annotations

KEPT = 16
"""Warnings of one result; ``Result.warnings`` takes no more. What comes later is dropped: the first says the most."""

_notes: list[str] = []


def add(text: str) -> None:
    """Keep ``text`` for the next result, unless it is there already."""
    if text not in _notes and len(_notes) < KEPT:
        _notes.append(text)


def take() -> list[str]:
    """Return the warnings since the last call, oldest first, and forget them."""
    taken = _notes[:]
    del _notes[: len(taken)]
    return taken
