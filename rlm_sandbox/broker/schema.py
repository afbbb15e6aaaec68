"""``schema=`` answers: validated here, whatever the provider promised.

The schema comes from the guest and is hostile: it is checked as a schema before anything is sent, its references are resolved
within it only, and unless it is small and made of words whose cost is known (:data:`PLAIN_WORDS`), a process of its own does the validation
(:mod:`.schema_check`), so that no schema can hold up the broker.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import schema_check
from rlm_sandbox.errors import PolicyError

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Call

INLINE_PRODUCT = 2**15
"""Characters of schema times characters of answer that are validated on the event loop: in 25 ms at most, which is what the dearest of the words
below needs (an ``anyOf`` of many ``false`` for the items of a long array: 10 us for each pair)."""

THREAD_PRODUCT = 2**20
"""The same for a thread, where it takes 0.8 s at most and the event loop goes on."""

PLAIN_WORDS = frozenset({
    "type", "const", "enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "title", "description", "default", "examples", "$schema", "$comment", "deprecated", "readOnly", "writeOnly",
})  # fmt: skip
"""Keywords that look at one value once. With those that lead on to other subschemas below, each subschema meets each value at most once, so the
cost is at most the product. Any other keyword, one that a later draft brings included, sends the schema to the process: a reference is followed as
often as it stands there, ``unevaluatedProperties`` validates all below it again at every level (14 levels in 600 characters: 11 s), a pattern
can backtrack for ever."""

_ONE, _LIST, _BY_NAME = ("items", "additionalProperties"), ("allOf", "anyOf", "oneOf"), ("properties",)

PLAIN_DEPTH = 32
"""Levels of a schema that is validated on the event loop; each is some stack frames of the validator."""

INLINE_PARTS = 200
"""Subschemas and lists up to which a schema is checked on the event loop, at 140 us each."""

_PARTS = ("{", "[", "true", "false")

LARGE_KEPT = 256
"""Verdicts on large schemas that are remembered: 16 MiB of their texts."""

PATIENCE_S = 15.0
"""Wall time of the validating process; its own limit is 5 s of CPU."""

AT_ONCE = 4
"""Validating processes at a time: each is a Python interpreter of some 40 MB."""


class Validation:
    """Decides about answers; one per event loop."""

    def __init__(self) -> None:
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._turn = asyncio.Lock()
        self._large: dict[str, asyncio.Task[str | None]] = {}

    async def check(self, schema: str) -> None:
        """Refuse what is no usable schema before it costs anything.

        Raises:
            PolicyError: it is no JSON Schema, or refers to something that it does not hold.
        """
        if sum(schema.count(mark) for mark in _PARTS) <= INLINE_PARTS:
            async with self._turn:
                await asyncio.sleep(0)  # between two of a flood of schemas, others get on
                problem = schema_check.schema_problem(schema)
        else:
            problem = await self._check_large(schema)
        if problem is not None:
            raise PolicyError(problem, hint="pass a JSON Schema: see json-schema.org")

    async def _check_large(self, schema: str) -> str | None:
        """Ask the process, once for all the calls of a batch."""
        task = self._large.get(schema)
        if task is None:
            while len(self._large) >= LARGE_KEPT:
                del self._large[next(iter(self._large))]
            question = json.dumps({"text": None, "schema": schema}).encode()
            task = self._large[schema] = asyncio.create_task(self._in_process(question))
            task.add_done_callback(lambda done: self._forget_failed(schema, done))
        return await asyncio.shield(task)

    def _forget_failed(self, schema: str, task: asyncio.Task[str | None]) -> None:
        if (task.cancelled() or task.exception()) and self._large.get(schema) is task:
            del self._large[schema]

    async def problem_with(self, text: str, schema: str) -> str | None:
        """Return why an answer does not satisfy the schema, or None."""
        product = len(text) * len(schema)
        if product <= THREAD_PRODUCT and is_plain(schema):
            if product <= INLINE_PRODUCT:
                return schema_check.problem_with(text, schema)
            return await asyncio.to_thread(schema_check.problem_with, text, schema)
        return await self._in_process(json.dumps({"text": text, "schema": schema}).encode())

    async def _in_process(self, question: bytes) -> str | None:
        async with self._at_once:
            return await _ask_process(question)


@lru_cache(maxsize=256)
def is_plain(text: str) -> bool:
    """Tell whether a schema holds only keywords whose cost is known. Anything unexpected is not plain."""
    try:
        return _is_plain(json.loads(text), PLAIN_DEPTH)
    except (ValueError, RecursionError):
        return False


def _is_plain(schema: Any, levels: int) -> bool:
    if isinstance(schema, bool):
        return True
    if not isinstance(schema, dict) or levels == 0:
        return False
    parts: list[Any] = []
    for word, value in schema.items():
        if word in _ONE:
            parts.append(value)
        elif word in _LIST and isinstance(value, list):
            parts += value
        elif word in _BY_NAME and isinstance(value, dict):
            parts += value.values()
        elif word not in PLAIN_WORDS:
            return False
    kinds = schema.get("type", "")
    named = isinstance(kinds, str) or (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds))
    return named and all(_is_plain(part, levels - 1) for part in parts)  # in draft 3 a type could be a schema


def ask_again(call: Call, problem: str) -> Call:
    """Return the one further question after an answer that did not validate."""
    return replace(
        call,
        prompt=f"{call.prompt}\n\nYour previous answer was rejected: {problem}\n{in_words(call)}",
    )


def in_words(call: Call) -> str:
    """Return the wish for an answer that fits, for models whose provider has no structured output, or has it and does not keep to it."""
    return f"Answer with one JSON value that satisfies this JSON Schema, and nothing else:\n{call.schema}"


async def _ask_process(question: bytes) -> str | None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", schema_check.__file__, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env={}
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            output, _ = await process.communicate(question)
        answer = json.loads(output)["problem"]
    except (TimeoutError, ValueError):
        return "it could not be validated within the limits of time and memory; use a simpler schema"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return None if answer is None else str(answer)
