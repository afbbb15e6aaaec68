"""Which JSON Schemas the Messages API's structured output can hold a model to, and in what form.

It knows a part of JSON Schema, and the SDK's own translation leaves out what is not in it. Left out of a string's pattern that is a
looser wish, which the broker's validation makes good; left out of an object without ``properties`` it is another schema: only ``{}`` can satisfy it.
So a schema is translated whole, or not at all; then the wish for it is put into words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HOLDERS = frozenset({"$defs", "anyOf", "oneOf", "allOf"})
"""Keywords that hold schemas, whatever the type."""

_DEPTH_MAX = 64
"""Levels. The API takes far fewer, and beyond this a translation is not worth a recursion."""


def structured(schema: Any, transform: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
    """Return the form for the API, made by the SDK's ``transform``; None where it would ask for something else than the schema does."""
    try:
        return transform(_plain(schema, 0))
    except (_Inexpressible, ValueError, TypeError, AssertionError, AttributeError, KeyError):
        return None  # the SDK raises any of these for a form it does not know


class _Inexpressible(Exception):  # noqa: N818 - a way out of the recursion
    """The API has no word for this."""


def _plain(schema: Any, depth: int) -> dict[str, Any]:
    """Return the schema in the API's words. Raises :class:`_Inexpressible`."""
    if not isinstance(schema, dict) or depth > _DEPTH_MAX or "definitions" in schema:
        raise _Inexpressible
    plain = dict(schema)
    for name in _HOLDERS & plain.keys():
        plain[name] = _parts(plain[name], depth + 1)
    if "$ref" in plain:
        if not str(plain["$ref"]).startswith("#/$defs/"):
            raise _Inexpressible
        return plain
    kind = plain.get("type")
    if isinstance(kind, list):
        return _split(plain, kind, depth)
    if kind == "object":
        _keep_object(plain, depth)
    elif kind == "array":
        plain["items"] = _plain(plain.get("items"), depth + 1)
    return plain


def _parts(parts: Any, depth: int) -> Any:
    if isinstance(parts, dict):
        return {name: _plain(part, depth) for name, part in parts.items()}
    return [_plain(part, depth) for part in parts]


def _split(plain: dict[str, Any], kinds: list[Any], depth: int) -> dict[str, Any]:
    """Write ``"type": ["string", "null"]`` as a choice, which the SDK knows."""
    if _HOLDERS & plain.keys() - {"$defs"}:
        raise _Inexpressible
    around = {name: plain.pop(name) for name in ("$defs", "description", "title") if name in plain}
    own = {"null": {"type": "null"}, "boolean": {"type": "boolean"}}
    return around | {"anyOf": [_plain(own.get(kind, plain | {"type": kind}), depth + 1) for kind in kinds]}


def _keep_object(plain: dict[str, Any], depth: int) -> None:
    """An object of the API's has the properties that are listed, and no others."""
    properties = plain.get("properties")
    if not properties or plain.get("additionalProperties", False) is not False or "patternProperties" in plain:
        raise _Inexpressible
    if not set(plain.get("required", ())) <= properties.keys():
        raise _Inexpressible
    plain["properties"] = _parts(properties, depth + 1)
