"""Running one cell: what ``exec`` does, however its arguments were read.

Light on purpose: this is what a model calls at every step, and a process that starts for it should cost little more than Python itself.
"""

from __future__ import annotations

import sys

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.daemon import client
from rlm_sandbox.errors import UsageError
from rlm_sandbox.wire.frames import PAYLOAD_MAX

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

UNWIND_S = 15.0
"""What a cell over its time may take to end: the interrupt's grace of 3 s, a fresh interpreter, and room for a busy host."""


def live(enabled: bool) -> Callable[[dict[str, Any]], None] | None:
    """Return a progress display for a person at a terminal, else None."""
    if not enabled or not sys.stderr.isatty() or not settings.colour_allowed():
        return None
    from rlm_sandbox.cli.progress import Live  # noqa: PLC0415 - rich is only for people

    return Live()


def execute(
    *, session: str | None, code: str | None, file: str | None, timeout: float | None, wait_s: float | None, form: str
) -> None:
    """Run a cell and print its document. Raises :class:`~rlm_sandbox.errors.RLMError`."""
    source = _code(code, file)
    try:
        source.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UsageError("the code is not UTF-8", hint="save it as UTF-8") from exc
    if wait_s is None:
        # Whoever names a longer time for the cell means to see its end.
        wait_s = max(settings.default_wait(), 0.0 if timeout is None else timeout + UNWIND_S)
    arguments = {
        "session": session,
        "timeout": timeout,
        "wait": wait_s,
        "stdout_max": settings.stdout_max(),
        "stdout_default": settings.stdout_default(form),
    }
    output.document(client.call("exec", arguments, source, spawn=False, progress=live(True)), form, "executed")


def _code(code: str | None, file: str | None) -> bytes:
    if code is not None and file is not None:
        raise UsageError("-c and -f exclude each other", hint="give the code once")
    if code is not None:
        return code.encode("utf-8", "surrogateescape")
    if file is not None and file != "-":
        try:
            with open(file, "rb") as stream:  # noqa: PTH123 - pathlib is not needed otherwise
                return _all_of(stream)
        except OSError as exc:
            raise UsageError(f"{file}: {exc.strerror}", hint="name a readable file of Python code") from exc
    if sys.stdin.isatty():
        raise UsageError("no code given", hint="use -c CODE, -f FILE or standard input")
    return _all_of(sys.stdin.buffer)


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _all_of(stream: BinaryIO) -> bytes:
    """Read code to its end, which a device may not have, without the mark that some editors begin a file with, as Python reads it."""
    code = stream.read(PAYLOAD_MAX + 1)
    if len(code) > PAYLOAD_MAX:
        raise UsageError(f"the code is more than {PAYLOAD_MAX} bytes", hint="put data into the input, not into code")
    return code.removeprefix(_BYTE_ORDER_MARK)
