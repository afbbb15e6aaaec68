"""A program of its own: does this text satisfy this schema? Reads ``{"schema", "text"}``, prints ``{"problem"}``; without a text, is it a schema?

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


@lru_cache(maxsize=256)
def schema_problem(text: str) -> str | None:
    """Return why the text is no schema that an answer could be held to, or None."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - 60 ms, and few calls have a schema
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415
    from jsonschema.validators import validator_for  # noqa: PLC0415

    schema = json.loads(text)
    if not isinstance(schema.get("$schema", ""), str):
        return "the schema is not a JSON Schema: $schema is not a string"
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
        lost = _lost_reference(schema)
    except SchemaError as error:
        return f"the schema is not a JSON Schema: {error.message}"[:PROBLEM_MAX]
    except RecursionError:
        return "the schema is not a JSON Schema: it is nested too deeply"
    if lost is not None:
        return f"the schema refers to something outside of itself: {lost}"[:PROBLEM_MAX]
    return None


def _lost_reference(schema: dict[str, Any]) -> str | None:
    """Return a reference that leads nowhere: no answer could satisfy it. Subschemas with a name of their own are not followed."""
    from referencing.exceptions import Unresolvable  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY  # noqa: PLC0415

    resolver = EMPTY_REGISTRY.with_resource("", DRAFT202012.create_resource(schema)).resolver()
    references: list[str] = []
    if not _collect(schema, references):
        return None
    for reference in references:
        try:
            found = resolver.lookup(reference).contents
        except (Unresolvable, LookupError, ValueError, TypeError, AttributeError):
            return reference  # the last ones are of a pointer through what is no schema
        if not isinstance(found, (dict, bool)):
            return reference
    return None


def _collect(part: Any, references: list[str]) -> bool:
    """Collect the references in a schema; False where names of parts make them mean something else."""
    if isinstance(part, list):
        return all(_collect(item, references) for item in part)
    if not isinstance(part, dict):
        return True
    if isinstance(part.get("$id"), str) or isinstance(part.get("id"), str):
        return False
    if isinstance(part.get("$ref"), str):
        references.append(part["$ref"])
    return all(_collect(value, references) for name, value in part.items() if name not in _VALUES)


_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords that hold values, which may look like schemas."""


@lru_cache(maxsize=64)
def validator(text: str) -> Any:
    """Return the validator of a schema; references are resolved within it and never fetched."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    schema = json.loads(text)
    kind = validator_for(schema, default=Draft202012Validator)
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
    text, schema = question["text"], question["schema"]
    json.dump({"problem": schema_problem(schema) if text is None else problem_with(text, schema)}, sys.stdout)


if __name__ == "__main__":
    main()
