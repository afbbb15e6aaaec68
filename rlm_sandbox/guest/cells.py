"""Running the source of one cell: compile, execute, and tell what happened as text.

This is the one place where a broad ``except`` belongs: whatever a cell raises is its result, not the kernel's failure.
"""

from __future__ import annotations

import io
import linecache
import os
import sys
import traceback
from typing import Any

from rlm_sandbox.guest import doors
from rlm_sandbox.guest.api import Finished
from rlm_sandbox.guest.text import Text

ERROR_MAX = 64 * 1024
"""Bytes of a traceback in a result, half from the head, half from the tail. A model reads far less; ``Result`` takes 256 KiB."""

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 - pathlib costs start-up time


def run(cell: int, source: bytes, names: dict[str, Any]) -> tuple[str, str]:
    """Run a cell in ``names``; returns ``(status, error text)``.

    The text of the error is made here, within the cell's own time, because it runs code of the cell (``__str__``).
    """
    try:
        code = _compile(cell, source)
        exec(code, names)  # noqa: S102 - this is what a kernel is for
    except Finished:
        return "ok", ""
    except SystemExit as exc:
        return ("ok", "") if exc.code is None or exc.code == 0 else ("error", f"SystemExit: {exc.code}\n")
    except KeyboardInterrupt as exc:
        return "interrupted", describe(exc)
    except BaseException as exc:  # noqa: BLE001 - see the module
        lazy = names.get("Text") is Text and doors.hint(exc)
        return "error", describe(exc) + (f"hint: {lazy}\n" if lazy else "")
    return "ok", ""


def _compile(cell: int, source: bytes) -> Any:
    name = f"<cell {cell}>"
    text = source.decode("utf-8")
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return compile(text, name, "exec", dont_inherit=True)


def describe(exc: BaseException) -> str:
    """Return the traceback as Python prints it, without the frames of this package."""
    try:
        told = traceback.TracebackException.from_exception(exc, compact=True)
        _hide_own_frames(told, set())
        return clip_middle("".join(told.format())).decode("utf-8", "replace")
    except Exception as failure:  # noqa: BLE001 - a hostile exception can break its own description
        return f"{type(exc).__name__}: (its description failed with {type(failure).__name__})\n"


def _hide_own_frames(told: traceback.TracebackException | None, seen: set[int]) -> None:
    stack = [told] if told is not None else []
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_OURS)]
        stack += [linked for linked in (each.__cause__, each.__context__) if linked is not None]
        stack += getattr(each, "exceptions", None) or []


def clip_middle(text: str) -> bytes:
    """Return ``text`` as UTF-8 of at most about ``ERROR_MAX`` bytes, with a mark where the middle was."""
    if len(text) > 2 * ERROR_MAX:
        text = text[:ERROR_MAX] + text[-ERROR_MAX:]
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= ERROR_MAX:
        return raw
    half = ERROR_MAX // 2
    head = raw[:half].decode("utf-8", "ignore").encode()
    tail = raw[-half:].decode("utf-8", "ignore").encode()
    return head + b"\n[... traceback shortened ...]\n" + tail


def open_stream(fd: int) -> io.TextIOWrapper:
    """Return a text stream on ``fd`` that takes any string and whose closing leaves ``fd`` open.

    Line-buffered: whole lines are out before a crash or ``os._exit``. Unbuffered would lose bytes when a signal cuts a write.
    """
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def flush() -> None:
    """Send what the cell printed on its way before its result goes."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:  # noqa: BLE001, S112 - a stream of the cell's own making
            continue


def print_safely(text: str) -> None:
    """Write to descriptor 2, whatever became of ``sys.stderr``."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        return


def leave_fork(status: str, error: str) -> None:
    """End a process that a cell forked and that ran to the end of the cell's source: there is one kernel only."""
    flush()
    if status != "ok":
        print_safely(error)
    os._exit(0 if status == "ok" else 1)
