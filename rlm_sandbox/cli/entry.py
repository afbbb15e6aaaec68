"""The program's entry: the plain forms of ``exec`` go straight to work, everything else through the whole command line.

The whole command line costs as much to import as three Python interpreters to start, and ``exec`` is called at every step of a model. So
its documented options are read here; whatever is not plainly one of them (another command, a mistake, ``--help``, an abbreviation) is left
to the whole one, which decides what it means and what is wrong with it. Both end in :func:`rlm_sandbox.cli.cells.execute`.
"""

from __future__ import annotations

import os
import sys

from rlm_sandbox.cli.ending import finish

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

_TEXTS = {"--session": "session", "-c": "code", "-f": "file"}
_NUMBERS = {"--timeout": "timeout", "--wait": "wait_s"}
_FORM = "--format"


def plain_exec(argv: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of :func:`~rlm_sandbox.cli.cells.execute`, or None for what the whole command line must read."""
    found: dict[str, Any] = {}
    before: str | None = None
    words = iter(argv)
    for word in words:
        if word == "exec":
            break
        value = next(words, None)
        if word != _FORM or value not in {"json", "text"} or before is not None:
            return None
        before = value
    else:
        return None
    for word in words:
        if not _take(word, next(words, None), found):
            return None
    form = found.pop("form", before) or "json"
    names = (*_TEXTS.values(), *_NUMBERS.values())
    return {"form": form, **{name: found.get(name) for name in names}}


def _take(option: str, value: str | None, found: dict[str, Any]) -> bool:
    """Note one option with its value; False for anything that is not plain: unknown, repeated, without a value, not a number."""
    name = _TEXTS.get(option) or _NUMBERS.get(option) or ("form" if option == _FORM else None)
    if name is None or value is None or name in found:
        return False
    if option == _FORM:
        found[name] = value
        return value in {"json", "text"}
    if option in _TEXTS:
        found[name] = value
        return True
    try:
        found[name] = number = float(value)
    except ValueError:
        return False
    return number >= 0  # not for NaN either


def main() -> NoReturn:
    """Run a command and exit with its code."""
    arguments = plain_exec(sys.argv[1:])
    if arguments is None:
        from rlm_sandbox.cli.main import main as whole  # noqa: PLC0415 - see the module

        whole()
    finish(lambda: _execute(arguments), str(arguments["form"]))


def _execute(arguments: dict[str, Any]) -> None:
    from rlm_sandbox.cli.cells import execute  # noqa: PLC0415 - within reach of what tells of a failure

    execute(**arguments)
    os._exit(0)  # everything was written and flushed: taking an interpreter apart costs another 3 ms
