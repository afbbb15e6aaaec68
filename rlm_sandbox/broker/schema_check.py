"""A program of its own: does this text satisfy this schema? Reads ``{"schema", "text"}``, prints ``{"problem"}``.

A schema can make validation run for ever (a pattern that backtracks, references that multiply), and nothing in one process
can stop that. So what is not obviously cheap is decided here, under limits of CPU time and memory, by a process
that holds nothing and may be killed. Imported by :mod:`rlm_sandbox.broker.schema` for the cheap cases.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from typing import Any

CPU_S = 5
MEMORY = 1024 * 1024 * 1024
"""Bytes of address space: an answer of some megabytes as Python objects, several times over."""

PROBLEM_MAX = 500
"""Characters of a message sent back to the model: the path and the reason, not the whole instance."""


def problem_with(text: str, schema: str) -> str | None:
    """Return why the text does not satisfy the schema, or None."""
    from jsonschema.exceptions import best_match  # noqa: PLC0415 - 60 ms, and few calls have a schema
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        value = json.loads(text, parse_constant=refuse_constant)
        error = best_match(validator(schema).iter_errors(value))
    except Unresolvable as failure:
        return f"the schema refers to something outside of itself: {failure}"[:PROBLEM_MAX]
    except (ValueError, RecursionError) as failure:
        return f"it is not JSON: {failure}"[:PROBLEM_MAX]
    return None if error is None else f"at {error.json_path[:200]}: {error.message}"[:PROBLEM_MAX]


@lru_cache(maxsize=64)
def validator(text: str) -> Any:
    """Return the validator of a schema; references are resolved within it and never fetched."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    schema = json.loads(text)
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=Registry())


def refuse_constant(name: str) -> object:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def main() -> None:
    """Answer one question under limits."""
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    question = json.load(sys.stdin)
    json.dump({"problem": problem_with(question["text"], question["schema"])}, sys.stdout)


if __name__ == "__main__":
    main()
