"""A recorded run, read back: its cells with their calls, and which cells made the variables of its interpreter at each point.

An interpreter's variables are the work of the cells that ran in it, in order. A run has several interpreters when one died or the session was
reopened; the journal says of each which cells were run again in it (``restored``), so the state at any point is a list of cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm_sandbox.session import records as r

if TYPE_CHECKING:
    from collections.abc import Iterable

BEGUN_MAX = 3
"""How often a cell that was cut off by the end of its container is begun anew: more often, and it is taken to be the cause."""

CRASHES = frozenset({"protocol", "engine", "internal"})
"""Reasons of an end that nobody wanted; the cell that ran then is continued. After any other (stop, idle, time limit) it is not."""


@dataclass
class PastCell:
    """One cell. ``result`` is None when it was cut off; ``begun`` counts how often it was started."""

    number: int
    code: str
    timeout_s: float
    began_at: str
    begun: int = 1
    calls: list[r.Call] = field(default_factory=list)
    budgets: list[r.Budget] = field(default_factory=list)
    interrupts: int = 0
    result: r.Result | None = None
    carried: int = 0
    """How many of ``calls`` were recorded when it was begun anew: the cell that went on was given these, the late ones too."""

    @property
    def status(self) -> str:
        """The outcome, or ``cut off``."""
        return self.result.status if self.result else "cut off"

    @property
    def cut_by_clock(self) -> bool:
        """True when somebody's clock or hand ended it, so that where it ended is not in its code."""
        return self.status in {"timeout", "interrupted"}


@dataclass(frozen=True)
class Step:
    """What happened to the interpreter: ``cell`` ran in it, or (``cell`` None) it is fresh and holds the work of ``state``.

    Not ``clean``: it also holds what a cell had done before it left its record, so its variables cannot be compared.
    """

    cell: int | None
    state: tuple[int, ...] = ()
    clean: bool = True


@dataclass
class Past:
    """A whole journal. ``start`` is the first start, ``latest`` the last one; ``head`` the digest of the last line."""

    start: r.Start | None = None
    latest: r.Start | None = None
    input: r.InputDigest | None = None
    cells: dict[int, PastCell] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    others: list[r.AnyRecord] = field(default_factory=list)
    final: r.Final | None = None
    final_cell: int = 0
    ended: r.End | None = None
    head: str = ""
    records: int = 0
    last_at: str = ""
    lived: list[int] = field(default_factory=list)
    """Cells that did not kill their interpreter, since the last start that was meant to be fresh."""
    _state: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, journal: Iterable[tuple[r.AnyRecord, str]]) -> Past:
        """Build it from checked records (see :func:`rlm_sandbox.session.journal.read`)."""
        past = cls()
        for record, digest in journal:
            past.add(record)
            past.head, past.last_at = digest, record.at
            past.records += 1
        return past

    def add(self, record: r.AnyRecord) -> None:
        """Take the next record. What names a cell that never began is kept among ``others`` only."""
        cell = self.cells.get(getattr(record, "cell", 0))
        match record:
            case r.Start():
                self.start = self.start or record
                self.latest, self.ended = record, None
            case r.InputDigest():
                self.input = record
            case r.CellBegan():
                self._began(record)
            case r.Call() if cell is not None:
                cell.calls.append(record)
            case r.Budget() if cell is not None:
                cell.budgets.append(record)
            case r.Result() if cell is not None:
                self._ended(cell, record)
            case r.Restored():
                self._restored(record)
            case r.End():
                self.ended = record
                self.others.append(record)
            case _:
                if isinstance(record, r.Interrupt) and cell is not None:
                    cell.interrupts += 1
                self.others.append(record)

    def _restored(self, record: r.Restored) -> None:
        self._state = [number for number in record.cells if number in self.cells]
        if record.why == "reopened" and not record.cells and record.divergence is None:
            self.lived.clear()
        self.steps.append(Step(None, tuple(self._state), clean=record.divergence is None))
        self.others.append(record)

    def _began(self, record: r.CellBegan) -> None:
        known = self.cells.get(record.cell)
        if known is not None:
            known.begun += 1
            known.carried = len(known.calls)
            return
        self.cells[record.cell] = PastCell(record.cell, record.code, record.timeout_s, record.at)

    def _ended(self, cell: PastCell, result: r.Result) -> None:
        cell.result = result
        if result.final is not None:
            self.final, self.final_cell = result.final, cell.number
        self.steps.append(Step(cell.number))
        if result.status != "kernel_died":
            self._state.append(cell.number)
            self.lived.append(cell.number)

    @property
    def state(self) -> list[int]:
        """The cells whose work the interpreter holds at the end."""
        return list(self._state)

    @property
    def last_cell(self) -> int:
        """The highest number given to a cell; 0 when there is none."""
        return max(self.cells, default=0)

    @property
    def calls(self) -> list[r.Call]:
        """All sub-calls, in the order in which they ended within each cell."""
        return [call for cell in self.cells.values() for call in cell.calls]

    def cut_off(self) -> PastCell | None:
        """Return the cell that a crash cut off and that should be continued."""
        last = self.cells.get(self.last_cell)
        if last is None or last.result is not None or last.begun >= BEGUN_MAX:
            return None
        if self.ended is not None and self.ended.reason not in CRASHES:
            return None
        return last
