"""One cell from its first byte to its document."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm_sandbox.sanitize import visible

if TYPE_CHECKING:
    from rlm_sandbox.models import CellStatus, FinalAnswer
    from rlm_sandbox.session.spool import Spool
    from rlm_sandbox.session.store import FinalWriter

ERROR_MAX = 8000
"""Characters of a traceback in a document: two screens; the interesting end is kept."""

_DEATHS = {
    "exit": "the interpreter exited with status {code}",
    "signal": "the interpreter was killed by signal {code}",
    "memory": "the interpreter ran out of memory and was killed",
    "unresponsive": "the cell ignored the interrupt and its interpreter was killed",
}


@dataclass
class CellRun:
    """The state of one cell while it runs and after."""

    cell: int
    timeout_s: float
    spool: Spool
    started: float = field(default_factory=time.monotonic)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    status: CellStatus = "running"
    error: str | None = None
    final: FinalAnswer | None = None
    writer: FinalWriter | None = None
    final_kind: str = "direct"
    final_name: str | None = None
    final_length: int = 0
    expired: bool = False
    interrupted: bool = False
    reported: bool = False
    """The kernel's result has come; the output is still being drained."""
    output_bytes: int = 0
    """What came of the output, before it was decoded."""
    again: bool = False
    """It only repeats a recorded cell, so as to have its variables."""
    final_digest: str | None = None
    final_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    elapsed_s: float | None = None
    calls_done: int = 0
    calls_failed: int = 0
    calls_planned: int = 0
    tokens: int = 0
    cost_micro: int = 0

    @property
    def elapsed_ms(self) -> int:
        """Wall time so far, or in all once done."""
        return round(1000 * (self.elapsed_s if self.elapsed_s is not None else time.monotonic() - self.started))

    def fail(self, status: CellStatus, error: str) -> None:
        """Set a failed outcome with its text, made visible and bounded."""
        self.status = status
        text = visible(error)
        self.error = text if len(text) <= ERROR_MAX else "[... cut ...]\n" + text[-ERROR_MAX:]

    def died(self, cause: str, code: int, fate: str) -> None:
        """The kernel is gone; say how, and what becomes of the variables."""
        what = _DEATHS[cause].format(code=code)
        if self.expired and cause == "unresponsive":
            what = f"timeout after {self.timeout_s:g} s: {what}"
        self.fail("kernel_died", f"{what}. The session goes on with a fresh interpreter; {fate}.")

    def finish(self) -> None:
        """Nothing more will come."""
        self.elapsed_s = time.monotonic() - self.started
        self.spool.close()
        self.done.set()
