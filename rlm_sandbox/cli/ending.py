"""How every command ends: its failure as one line and a known exit code, whatever it was."""

from __future__ import annotations

import os
import sys

from rlm_sandbox.errors import InternalError, InterruptedByUser, RLMError

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


def finish(work: Callable[[], Any], form: str) -> NoReturn:
    """Do ``work`` and exit with the code it returns (0 if that is no number), or with that of its failure."""
    code: Any = 0
    open_closed_streams()
    try:
        code = work()
    except RLMError as exc:
        _fail(exc, form)
    except KeyboardInterrupt:
        _fail(
            InterruptedByUser(
                "interrupted",
                hint="a start is undone; a running cell goes on: rlm-sandbox wait, or rlm-sandbox interrupt",
            ),
            form,
        )
    except BrokenPipeError:
        _leave_broken_pipe()
    except Exception as exc:  # noqa: BLE001 - the top: a defect must still be one line and a known exit code
        _fail(InternalError(f"{type(exc).__name__}: {exc}", hint="please report this as a bug"), form)
    sys.exit(code if isinstance(code, int) else 0)


def open_closed_streams() -> None:
    """Let a standard stream that the caller closed (``>&-``) be /dev/null: else the next file or socket would take its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - for as long as we live


def _fail(error: RLMError, form: str) -> NoReturn:
    from rlm_sandbox.cli import output  # noqa: PLC0415 - its import may be what failed or was interrupted

    try:
        output.failure(error, form)
    except BrokenPipeError:
        _leave_broken_pipe()
    sys.exit(error.exit_code)


def _leave_broken_pipe() -> NoReturn:
    """The reader closed our stdout (``| head``): that is its right, and no failure of ours."""
    import os  # noqa: PLC0415 - rare

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
