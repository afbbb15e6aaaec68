"""The seed strategies: programs for the guest, shipped as plain files and run through the same ``exec`` as anybody's cells.

A program's parameters stand at its head as assignments of literals (``ascii()`` of the value), so that no value, a question
least of all, ever becomes code.
"""

from __future__ import annotations

from importlib import resources

STRATEGIES: dict[str, tuple[str, ...]] = {
    "filter": ("templates.py", "calls.py", "filter.py"),
    "map-reduce": ("calls.py", "pieces.py", "map_reduce.py"),
    "pairwise": ("calls.py", "pieces.py", "pairwise.py"),
}
"""Each strategy's files, in the order in which they make up the program."""

MAX_CALLS = 24
"""Sub-LLM calls a strategy plans when nobody says otherwise: with a small local model on two cores about half a minute."""


PIECE_CHARS = 24_000
"""Characters of the context in one prompt: 6,000 tokens of prose, and up to 17,000 of a log that is mostly digits."""

LOCAL_PIECE_CHARS = 4000
"""The same for the local model, whose prompt and answer share 4,096 tokens: it has a token for every 1.4 characters of such a log."""


def load(name: str, *, question: str, max_calls: int = MAX_CALLS, piece_chars: int = PIECE_CHARS) -> str:
    """Return the program of a strategy as the source of one cell. ``KeyError`` names an unknown strategy."""
    parameters = {"QUESTION": question, "MAX_CALLS": max_calls, "PIECE_CHARS": piece_chars}
    header = "".join(f"{key} = {value!a}\n" for key, value in parameters.items())
    folder = resources.files(__name__)
    return header + "\n\n".join(folder.joinpath(part).read_text(encoding="utf-8") for part in STRATEGIES[name])
