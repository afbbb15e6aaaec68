"""What one live session writes down, and how its interpreter gets back what was written.

The session tells this of every cell, result, death and end; a cell that only repeats a recorded one is never written down again. When an
interpreter dies, the next one is given the variables of the cells before it, unasked, if running those again is cheap; the cell that killed
it is left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import RLMError
from rlm_sandbox.session.cell import CellRun
from rlm_sandbox.session.compare import KEPT
from rlm_sandbox.session.fingerprint import END_WAIT_S
from rlm_sandbox.session.pack import BLOB_MAX
from rlm_sandbox.session.recorder import Recorder
from rlm_sandbox.session.resume import BUSY_MAX_S, Outcome, Plan, past_of, restore
from rlm_sandbox.session.spool import Spool
from rlm_sandbox.session.store import AGAIN_FINAL
from rlm_sandbox.wire.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.session.fingerprint import Fingerprint, Watch
    from rlm_sandbox.session.journal import Journal
    from rlm_sandbox.session.live import LiveSession
    from rlm_sandbox.session.past import Past
    from rlm_sandbox.session.recorder import Payer
    from rlm_sandbox.wire import messages as m

log = logging.getLogger(__name__)


class Chronicle:
    """Made with its session. ``journal`` is closed by :meth:`end`; afterwards nothing more is written."""

    def __init__(self, live: LiveSession, journal: Journal, payer: Payer | None) -> None:
        self.journal = journal
        self.recorder = Recorder(payer, journal, cell=lambda: live.cell)
        self.recorder.on_cut = live.cut
        self.notes: list[str] = []
        """For the next result: what happened to the variables."""
        self._live = live
        self._busy_ms: dict[int, int] = {}
        self._due = False
        self.deaths = 0
        """How many interpreters have ended."""
        self._input: Watch | None = None
        self.outcome = Outcome()
        """Of restoring at the start."""

    # Writing

    def write(self, kind: str, **body: Any) -> None:
        """Add a record, unless the session has ended."""
        if not self.journal.closed:
            self.journal.append(kind, **body)

    def cell(self, run: CellRun, code: bytes) -> None:
        """A cell is about to be sent."""
        run.warnings, self.notes = self.notes, []
        self.write("cell", cell=run.cell, code=self.journal.blob(code), timeout_s=float(run.timeout_s))

    def result(self, run: CellRun) -> None:
        """A cell ended, and everything about it is known."""
        waited = self.recorder.waited_s(run.cell)
        busy_ms = max(0, run.elapsed_ms - round(1000 * waited))
        if run.status != "kernel_died":
            self._busy_ms[run.cell] = busy_ms
        if run.again or self.journal.closed:
            return
        shown, _, _ = run.spool.shown(KEPT)
        self.write(
            "result",
            cell=run.cell,
            status=run.status,
            error=None if run.error is None else self.journal.text(run.error),
            stdout={"digest": run.spool.digest, "chars": run.spool.chars, "text": self.journal.text(shown)},
            final=self._final(run),
            variables=self.journal.blob(self.variables),
            warnings=[text[:8192] for text in run.warnings],
            elapsed_ms=run.elapsed_ms,
            busy_ms=busy_ms,
        )

    def _final(self, run: CellRun) -> dict[str, Any] | None:
        answer = run.final
        if answer is None or run.final_digest is None:
            return None
        kept = self._live.store.read_final() if run.final_bytes <= BLOB_MAX else None
        return {
            "kind": answer.kind,
            "name": None if answer.name is None else answer.name[:8192],
            "bytes": run.final_bytes,
            "digest": run.final_digest,
            "text": None if kept is None else self.journal.blob(kept),
        }

    @property
    def variables(self) -> bytes:
        """The variables as the interpreter last reported them, as JSON."""
        return json.dumps([each.model_dump(mode="json") for each in self._live.variables]).encode()

    def end(self, reason: RLMError) -> None:
        """The session is over."""
        self.write("end", reason=reason.kind, message=reason.message[:8192])
        self.journal.close()

    # Restoring

    def kernel_down(self, message: m.KernelDown, run: CellRun | None) -> str:
        """An interpreter ended; return what becomes of its variables."""
        self.write("kernel", cause=message.cause, code=message.code, cell=0 if run is None else run.cell)
        self.deaths += 1
        again = run is not None and run.again
        if run is not None and run.reported:  # its work was done, and its result is about to be written
            self._busy_ms[run.cell] = run.elapsed_ms
        self._due = bool(self._busy_ms) and not again and sum(self._busy_ms.values()) <= 1000 * BUSY_MAX_S
        if not self._due:
            return "variables are lost"
        return "variables of the cells before it are restored by running those again, with their recorded answers"

    def kernel_ready(self, ready: asyncio.Event) -> None:
        """A fresh interpreter waits; ``ready`` is set when it holds what it should."""
        if self._due:
            self._due = False
            self._live.keep(asyncio.create_task(self._restore(ready)))
            return
        if self._busy_ms:
            self._busy_ms.clear()
            self.write("restored", why="kernel", cells=[], divergence=None)
        ready.set()

    async def _restore(self, ready: asyncio.Event) -> None:
        generation = self._live.generation
        try:
            plan = Plan(await past_of(self._live.store))
            self._busy_ms.clear()
            outcome = await restore(self, plan, "kernel", lambda _: None)
        except (RLMError, OSError, FrameError, KeyError) as exc:
            log.warning("session %s: restoring variables failed: %s", self._live.session, exc)
            outcome = Outcome(notes=[f"the variables could not be restored: {exc}"])
        if self._live.ended is None:
            self.notes += outcome.told
            if self._live.generation == generation:
                ready.set()

    async def open(self, plan: Plan, progress: Callable[[str], None], *, reopened: bool) -> None:
        """Begin: give a reopened session what it had; a cell that was cut off goes on. Before anyone else uses the session."""
        live = self._live
        if not reopened:
            self.write("restored", why="started", cells=[], divergence=None)
            return
        changed = _changed(plan.past, live)
        if plan.cells:
            await live.until_ready()
        outcome = self.outcome = await restore(self, plan, "reopened", progress)
        if changed and plan.cells:
            outcome.notes.insert(0, changed)
        live.recall(plan.past)
        cut = plan.cut_off
        if cut is not None and outcome.divergence is None and self.journal.holds(cut.code):
            self.recorder.rerun(cut, self.journal.read, strict=False)
            await live.continue_cell(cut.number, self.journal.read(cut.code), cut.timeout_s)
            outcome.continuing = cut.number
            outcome.notes.append(
                f"cell {cut.number} was cut off and goes on (rlm-sandbox wait); its answers are not bought again"
            )
        self.notes = outcome.told

    def again_done(self) -> None:
        """Restoring is over: every later call is new."""
        self.recorder.forget_scripts()
        for name in (".again.txt", AGAIN_FINAL):
            (self._live.store.folder / name).unlink(missing_ok=True)

    # The input

    def watch_input(self, watch: Watch) -> None:
        """Take charge of the digest that is being computed."""
        self._input = watch

    def input(self, found: Fingerprint) -> None:
        """The input's digest is known, or will never be."""
        manifest = None if found.manifest is None else self.journal.blob(found.manifest)
        index = None if found.index is None else self.journal.blob(found.index)
        self.write("input", digest=found.digest, bytes=found.size, manifest=manifest, index=index)

    async def finish_input(self, timeout_s: float | None = END_WAIT_S) -> None:
        """Return when the input's digest is in the journal, at the latest after ``timeout_s``, then without it."""
        if self._input is not None:
            await self._input.finish(timeout_s)

    async def run_again(self, code: bytes, cell: int, timeout_s: float) -> CellRun:
        """Run a recorded cell once more, unseen: it is nobody's turn, and nothing of it is written down."""
        live = self._live
        spool = Spool(live.store.folder / ".again.txt", shown_max=max(live.settings.stdout_max, KEPT), file_max=0)
        run = CellRun(cell, timeout_s, spool, again=True)
        await live.begin_again(run, code)
        over = asyncio.ensure_future(live.over.wait())
        done = asyncio.ensure_future(run.done.wait())
        await asyncio.wait({done, over}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        over.cancel()
        if live.ended is not None:
            raise live.ended
        return run


def _changed(past: Past, live: LiveSession) -> str | None:
    """Say how the input differs from what the record's cells have read, as far as a look at it tells."""
    if past.latest is None:
        return None
    before, now = past.latest.input, live.admitted
    moved = not now.staged and before.mtime_ns != now.identity.mtime_ns
    if before.bytes == now.total_bytes and not moved:
        return None
    return f"the input changed since the cells read it ({before.bytes} bytes then, {now.total_bytes} now)"
