"""Doors of Python that open for a ``str`` only, and what happens when a ``Text`` is brought to them.

The functions of ``re`` take a ``Text`` too: a program that says ``re.search(pattern, context)`` then runs on any input. Those
that give back the whole text in another form need it to fit into one ``str``. Everything else that is written in C and wants a real ``str`` (methods of compiled patterns,
``json.loads``, ``io.StringIO``) says so in a ``TypeError`` of its own, which a sentence is added to.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from rlm_sandbox.guest.text import Text

HINT = (
    "a Text is a str that stays on disk: search it with context.search(), finditer() or findall(), go through it with lines(),"
    " chunks() or grep(), and pass str(context[a:b]) to what wants a str"
)
_LOOKING = ("search", "match", "findall", "finditer")
_WHOLE = {"fullmatch": 1, "split": 1, "sub": 2, "subn": 2}
"""Where each has its text."""

_NAMED = re.compile(r"\bText\b")


def open_re() -> None:
    """Have ``re.search`` and its kin take a ``Text``. Harmless when done again."""
    for name in (*_LOOKING, *_WHOLE):
        original = getattr(re, name)
        if not hasattr(original, "__wrapped__"):
            taking = _looking(name, original) if name in _LOOKING else _whole(_WHOLE[name], original)
            setattr(re, name, functools.wraps(original)(taking))


def _looking(name: str, original: Any) -> Any:
    def call(pattern: Any, string: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(string, Text):
            return getattr(string, name)(pattern, *rest, **options)
        return original(pattern, string, *rest, **options)

    return call


def _whole(at: int, original: Any) -> Any:
    def call(*given: Any, **options: Any) -> Any:
        if isinstance(options.get("string"), Text):
            options["string"] = str(options["string"])
        elif len(given) > at and isinstance(given[at], Text):
            given = (*given[:at], str(given[at]), *given[at + 1 :])
        return original(*given, **options)

    return call


def hint(error: BaseException) -> str:
    """Return a sentence for an error that says only that a ``Text`` is no ``str``; empty for any other."""
    if type(error) is not TypeError or len(error.args) != 1 or type(error.args[0]) is not str:
        return ""
    return HINT if _NAMED.search(error.args[0]) else ""
