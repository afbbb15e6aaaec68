"""The only printer. Documents and answers go to stdout, everything else to stderr.

With ``--format json`` (the default) a command prints one JSON document; with ``text`` a compact block for a model, whose last line begins
``[rlm] ok`` or ``[rlm] error``. A failure prints one line on stderr in either form.
"""

from __future__ import annotations

import json
import os
import sys

from rlm_sandbox.errors import PrerequisiteError
from rlm_sandbox.sanitize import one_line, visible

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from rlm_sandbox.errors import RLMError


_displays: list[Callable[[], None]] = []


def displayed(stop: Callable[[], None]) -> None:
    """Have a progress display taken off the screen before anything is printed; ``stop`` may be called often."""
    _displays.append(stop)


def _clear() -> None:
    for stop in _displays:
        stop()


def document(value: dict[str, Any], form: str, kind: str) -> None:
    """Print a command's document; ``kind`` chooses the text form."""
    if form == "text":
        from rlm_sandbox.cli.text import render  # noqa: PLC0415 - only when asked for

        _write(render(kind, value))  # warnings are in it
        return
    _write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")
    for warning in value.get("warnings") or ():
        note(f"[rlm] warning: {one_line(warning)}")


def failure(error: RLMError, form: str) -> None:
    """Print a failure: one line on stderr, and on stdout what the format wants."""
    told = {**error.to_json(), "message": one_line(error.message), "hint": one_line(error.hint, 1000)}
    line = f"{told['message']} ({told['hint']})" if error.hint else told["message"]
    note(f"rlm-sandbox: {error.kind}: {line}")
    if form == "text":
        _write(f"[rlm] error {error.kind}: {line}\n")
    else:
        _write(json.dumps({"error": told}, indent=2) + "\n")


def raw(data: bytes) -> None:
    """Write an answer's bytes as they are; on a terminal, made visible first."""
    if sys.stdout.isatty():
        _write(visible(data.decode("utf-8", "replace")))
        return
    _clear()
    sys.stdout.flush()
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
    except OSError as exc:
        _lost(exc)


def text(value: str) -> None:
    """Print lines that are no document, such as a version."""
    _write(value if value.endswith("\n") else value + "\n")


def note(line: str) -> None:
    """Print one diagnostic line on stderr."""
    _clear()
    print(line, file=sys.stderr, flush=True)


def _write(value: str) -> None:
    _clear()
    try:
        sys.stdout.write(value)
        sys.stdout.flush()
    except OSError as exc:
        _lost(exc)


def _lost(error: OSError) -> NoReturn:
    """End because stdout takes no more. A reader that closed it (``| head``) may do so; a full disk is a failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise SystemExit(0) from None  # here, because click would make an exit code of its own of it
    note(
        f"rlm-sandbox: prerequisite: the output cannot be written: {error.strerror} (free space, or write it elsewhere)"
    )
    raise SystemExit(PrerequisiteError.exit_code) from None
