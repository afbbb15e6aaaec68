"""The conversation with the root model, kept within what the model can take.

Output of earlier steps is what grows, and what is needed least: variables hold it still. It is left out from the oldest on; the task, the code the
model wrote and the newest output stay.
"""

from __future__ import annotations

from typing import Any

HISTORY_MAX = 160_000
"""Characters: some 40,000 tokens, a fifth of the smallest window of a root model worth its price, and twenty steps of full output."""

LOCAL_MAX = 4500
"""The same for the small local model, whose window is 4,096 tokens with its instructions and its answer in it."""

KEPT = 2
"""Newest messages of the session's side that are never shortened."""


def within(messages: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the messages with output left out from the oldest on until they fit, or nothing more can go."""
    total = sum(_size(message) for message in messages)
    outputs = [place for place, message in enumerate(messages) if message["role"] == "user"][1:]
    shortened = list(messages)
    for place in outputs[: max(0, len(outputs) - KEPT)]:
        if total <= limit:
            break
        before = _size(shortened[place])
        shortened[place] = {"role": "user", "content": [_shortened(block) for block in shortened[place]["content"]]}
        total -= before - _size(shortened[place])
    return shortened


def _shortened(block: dict[str, Any]) -> dict[str, Any]:
    key = "text" if block["type"] == "text" else "content"
    note = f"[output of an earlier step, {len(block[key])} characters, left out; its variables are still there]"
    return block if len(block[key]) <= len(note) else {**block, key: note}


def _size(message: dict[str, Any]) -> int:
    content = message["content"]
    if isinstance(content, str):
        return len(content)
    return sum(len(str(block.get("text") or block.get("content") or block.get("input") or "")) for block in content)
