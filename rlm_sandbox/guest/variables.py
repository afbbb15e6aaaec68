"""What a result says about a cell's variables: names, types and sizes, never values.

A frame over the wire's limits ends the session, so everything a program can choose (names, type names, lengths, how
many) is clipped here to what the wire takes.
"""

from __future__ import annotations

import json
import types
import weakref
from typing import Any

from rlm_sandbox.wire.messages import ID_MAX, VARIABLES_MAX

NAME_MAX = 128
TYPE_MAX = 64
BYTES_MAX = 44 * 1024
"""Of the whole list as JSON. A header has 64 KiB; 16 KiB are for warnings and the rest. 200 usual names take 12 KiB."""

_quoted = json.JSONEncoder(ensure_ascii=False).encode
"""One for all, and for the two strings of an entry only: an encoder, or a walk through a dictionary, costs ten times what they do."""
_AROUND = len('{"name": , "type": , "len": }, ')

_type_name = type.__dict__["__name__"].__get__
_vars = type.__dict__["__dict__"].__get__
_mro = type.__dict__["__mro__"].__get__
_COUNTED_BY_C = type(list.__len__)
_LIBRARIES = {"pandas", "polars"}
_STANDING_FOR_ANOTHER = (types.MappingProxyType, weakref.ProxyType, weakref.CallableProxyType)


def listing(names: dict[Any, Any], given: dict[str, object]) -> tuple[list[dict[str, Any]], int]:
    """Return ``({name, type, len} of the latest variables, how many there are)``; what ``given`` holds is not a variable."""
    made = [
        (name, value)
        for name, value in list(names.items())
        if type(name) is str and not name.startswith("__") and not (name in given and given[name] is value)
    ]
    entries: list[dict[str, Any]] = []
    room = BYTES_MAX
    for name, value in reversed(made[-VARIABLES_MAX:]):
        entry = {"name": clip(name, NAME_MAX), "type": clip(type_name(value), TYPE_MAX), "len": _length(value)}
        room -= room_of(entry)
        if room < 0:
            break
        entries.append(entry)
    return entries[::-1], len(made)


def room_of(entry: dict[str, Any]) -> int:
    """Return the bytes that an entry takes in a list as JSON."""
    return _AROUND + len(f"{_quoted(entry['name'])}{_quoted(entry['type'])}{entry['len']}".encode())


def type_name(value: object) -> str:
    """Return the type's own name, whatever a metaclass says."""
    name: str = _type_name(type(value))
    return name


def clip(text: str, limit: int) -> str:
    """Return at most ``limit`` characters that survive UTF-8."""
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def _length(value: object) -> int | None:
    """``len()`` of what C counts, and of the tables of libraries; None for the rest.

    A ``__len__`` that a cell wrote would run here after the cell's end: a slow one would hold its result back, and one that
    raises could turn it into an error. The lazy context is left out too, since its length may mean reading the input.
    """
    method = next((_vars(kind)["__len__"] for kind in _mro(type(value)) if "__len__" in _vars(kind)), None)
    if isinstance(value, _STANDING_FOR_ANOTHER) or (type(method) is not _COUNTED_BY_C and not _of_library(method)):
        return None
    try:
        size: int = method(value)  # type: ignore[misc]
    except Exception:  # noqa: BLE001 - a library's own code runs here, on what a cell made
        return None
    return size if type(size) is int and 0 <= size <= ID_MAX else None


def _of_library(method: object) -> bool:
    return type(method) is types.FunctionType and str(method.__module__).partition(".")[0] in _LIBRARIES
