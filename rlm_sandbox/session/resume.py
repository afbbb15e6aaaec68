"""Giving a fresh interpreter the variables that the record says it should have.

Each cell whose work is to be there is run again, in order, and its sub-calls are answered from the journal: nothing is bought. A cell that
killed its interpreter is never among them. The first cell that leaves its record ends the restoring: what was restored until then stays, and
where it stopped is told. A cell that a crash cut off goes on afterwards as itself: recorded answers first, then the account.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlm_sandbox.errors import BundleError
from rlm_sandbox.session import journal as journals
from rlm_sandbox.session.compare import difference
from rlm_sandbox.session.past import Past
from rlm_sandbox.session.recorder import Divergence

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.session.cell import CellRun
    from rlm_sandbox.session.chronicle import Chronicle
    from rlm_sandbox.session.past import PastCell
    from rlm_sandbox.session.store import Store

log = logging.getLogger(__name__)

BUSY_MAX_S = 30.0
"""Computing time of the cells that are run again after an interpreter died, unasked: no longer than a person waits without wondering."""

Why = Literal["started", "reopened", "kernel"]


@dataclass
class Outcome:
    """What came of restoring: the cells whose work is there, where it diverged, and what to tell."""

    cells: list[int] = field(default_factory=list)
    divergence: Divergence | None = None
    notes: list[str] = field(default_factory=list)
    continuing: int | None = None

    @property
    def told(self) -> list[str]:
        """Everything worth telling, as lines."""
        lines = []
        if self.cells:
            which = "1 cell was" if len(self.cells) == 1 else f"{len(self.cells)} cells were"
            lines.append(f"{which} run again in a fresh interpreter, with recorded answers: variables are restored")
        if self.divergence is not None:
            lines.append(
                f"restoring variables stopped at {self.divergence}; go on without what came after, or stop and use "
                f"rlm-sandbox resume --from-cell {self.divergence.cell} (leave it out) or --live (buy what is not in the record)"
            )
        return lines + self.notes


@dataclass(frozen=True)
class Plan:
    """What to run again. ``live``: what is not in the record is bought; ``before`` leaves out this cell and all after it."""

    past: Past
    live: bool = False
    before: int | None = None
    fresh: bool = False

    @property
    def cells(self) -> list[PastCell]:
        """The cells, in order. An earlier try that stopped half-way does not shorten what is asked for by name."""
        asked = self.live or self.before is not None
        numbers = [n for n in (self.past.lived if asked else self.past.state) if self.before is None or n < self.before]
        return [self.past.cells[number] for number in numbers]

    @property
    def cut_off(self) -> PastCell | None:
        """The cell that a crash cut off and that goes on."""
        return self.past.cut_off() if self.before is None else None


def load(store: Store) -> Past:
    """Read a session's own journal; blocks. Raises :class:`BundleError` when it is damaged, ``OSError`` when there is none to read."""
    return Past.of(journals.read(journals.lines(store.folder / journals.NAME), torn=True))


async def restore(chronicle: Chronicle, plan: Plan, why: Why, progress: Callable[[str], None]) -> Outcome:
    """Run the plan's cells again in the fresh interpreter of the session, and write down what came of it."""
    outcome = Outcome()
    cells = plan.cells
    recorder = chronicle.recorder
    recorder.divergence = None
    deaths = chronicle.deaths
    for cell in cells:
        progress(f"replaying cell {cell.number} ({len(outcome.cells) + 1} of {len(cells)})")
        divergence, note = await _again(chronicle, cell, strict=not plan.live)
        if chronicle.deaths != deaths:
            outcome.cells.clear()
            divergence = Divergence(cell.number, None, "its interpreter died")
        if note:
            outcome.notes.append(note)
        if divergence is not None:
            outcome.divergence = divergence
            break
        outcome.cells.append(cell.number)
    chronicle.again_done()
    told = None if outcome.divergence is None else str(outcome.divergence)[:8000]
    chronicle.write("restored", why=why, cells=outcome.cells, divergence=told)
    return outcome


async def _again(chronicle: Chronicle, cell: PastCell, *, strict: bool) -> tuple[Divergence | None, str | None]:
    """Run one cell again; return where it diverged, and what is worth telling though it did not."""
    read = chronicle.journal.read
    try:
        code = read(cell.code)
    except KeyError:
        return Divergence(cell.number, None, "its code is no longer in the record"), None
    chronicle.recorder.rerun(cell, read, strict=strict)
    run = await chronicle.run_again(code, cell.number, seconds_for(cell))
    found = chronicle.recorder.divergence
    if found is not None:
        return found, None
    return judge(cell, run, chronicle.variables, read)


def judge(
    cell: PastCell, run: CellRun, variables: bytes, read: Callable[[str], bytes]
) -> tuple[Divergence | None, str | None]:
    """Tell whether a cell that was run again left its record in a way that matters for the cells after it."""
    found = difference(cell, run, variables, read)
    if found is None:
        note = f"cell {cell.number} was ended by the clock: its variables may differ" if cell.cut_by_clock else None
        return None, note
    if found.field in {"output", "error", "variables"}:
        return None, f"cell {cell.number} did not do quite what it did at first; its variables may differ ({found})"
    return Divergence(cell.number, None, str(found)), None


def seconds_for(cell: PastCell) -> float:
    """Return how long a cell may take this time: one that a clock ended is ended after as much computing as it did."""
    if cell.cut_by_clock and cell.result is not None:
        return cell.result.busy_ms / 1000 + 0.05
    return cell.timeout_s


def earlier_life(store: Store) -> tuple[Past | None, list[str]]:
    """Return what a session did before, and what is to be told about it; a journal that cannot be read is set aside. Blocks."""
    try:
        past = load(store)
    except OSError:
        return None, []  # there is none; if there is something else, its opening says so
    except BundleError as exc:
        path = store.folder / journals.NAME
        path.replace(path.with_name(f"journal-damaged-{path.stat().st_mtime_ns}.jsonl"))
        return None, [f"variables are not restored: {exc.message}"]
    return (past if past.start is not None else None), []


async def past_of(store: Store) -> Past:
    """As :func:`load`, off the event loop."""
    return await asyncio.to_thread(load, store)
