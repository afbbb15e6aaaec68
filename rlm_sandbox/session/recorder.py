"""Between the guest and the account: every answer is written down before the guest gets it, and answers that are written down are given again.

A recorded call is found by its cell and by what it asks, not by its number alone, because threads of a cell may come in another order. Answers
of one cell are given in the order in which they were recorded, as far as they have been asked for: a program that takes answers as they come
sees them as it did the first time. What is not in the record is bought, or, in a strict replay, is a divergence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlm_sandbox.broker.types import Answer, Budget, CallEvent, Phase, Usage
from rlm_sandbox.errors import DivergenceError, InternalError, ProviderError, RLMError, from_kind
from rlm_sandbox.session.asked import digest_of, form_of, texts_of
from rlm_sandbox.session.convert import budget_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.types import Position, Request
    from rlm_sandbox.models import BudgetState
    from rlm_sandbox.session import records as r
    from rlm_sandbox.session.journal import Journal
    from rlm_sandbox.session.past import PastCell

log = logging.getLogger(__name__)

ORDER_GRACE_S = 0.2
"""How long an answer waits for one that was recorded before it to be asked for: a program that asks both does so within milliseconds."""


class Payer(Protocol):
    """The part of :class:`rlm_sandbox.broker.core.Account` that a guest reaches."""

    async def ask(
        self, request: Request, position: Position, observer: Callable[[CallEvent], None] | None = None
    ) -> Answer:
        """Answer one sub-call."""

    async def budget(self) -> Budget:
        """Return the account as it stands."""


@dataclass(frozen=True)
class Divergence:
    """Where a replay left its record. ``call`` is the ordinal, None when it is about the cell as a whole; ``cell`` 0 before any."""

    cell: int
    call: int | None
    what: str

    def __str__(self) -> str:
        if not self.cell:  # about the run as a whole
            return self.what
        return f"cell {self.cell}" + ("" if self.call is None else f", call {self.call}") + f": {self.what}"


class Script:
    """The recorded answers of one cell."""

    def __init__(self, cell: PastCell, read: Callable[[str], bytes], *, strict: bool) -> None:
        self.cell = cell
        self.strict = strict
        self.cut = cell.cut_by_clock and strict
        self._read = read
        # A late answer was never seen by the cell: it serves a cell that goes on, and later the repetition of that, but no other.
        self._calls = [
            call for index, call in enumerate(cell.calls) if index < cell.carried or not (strict and call.late)
        ]
        self._open: dict[str, deque[int]] = defaultdict(deque)
        for index, call in enumerate(self._calls):
            self._open[call.digest].append(index)
        self._budgets = deque(cell.budgets)
        self._asked: set[int] = set()
        self._given: set[int] = set()
        self._next = 0
        self._moved = asyncio.Condition()

    def take(self, digest: str, ordinal: int) -> int | None:
        """Claim the record of such a call: the one with this number if there is one, else the first that is left."""
        open_ = self._open.get(digest)
        if not open_:
            return None
        index = next((each for each in open_ if self._calls[each].ordinal == ordinal), open_[0])
        open_.remove(index)
        return index

    async def answer(self, index: int) -> r.Call:
        """Wait for this record's turn and return it."""
        async with self._moved:
            self._asked.add(index)
            self._moved.notify_all()
            try:
                while self._first_left() < index:
                    async with asyncio.timeout(ORDER_GRACE_S):
                        await self._moved.wait()
            except TimeoutError:
                log.debug("cell %d: an earlier answer was not asked for", self.cell.number)
            self._given.add(index)
            self._moved.notify_all()
        return self._calls[index]

    def _first_left(self) -> int:
        while self._next in self._given:
            self._next += 1
        return self._next

    def budget(self) -> dict[str, Any] | None:
        """Return what the next question for the budget was answered with."""
        return dict(self._budgets.popleft().state) if self._budgets else None

    def text(self, digest: str) -> str:
        """Return a recorded text."""
        try:
            return self._read(digest).decode("utf-8", "replace")
        except KeyError:
            raise DivergenceError(
                f"the record of cell {self.cell.number} lacks a text", hint="export it again without --redact"
            ) from None

    @property
    def left(self) -> list[r.Call]:
        """Recorded calls that nobody asked for."""
        return sorted((self._calls[each] for open_ in self._open.values() for each in open_), key=lambda c: c.ordinal)


FREE_MAX = 256 * 1024 * 1024
"""Bytes that one life of a session may have recorded of what costs nothing: calls that were refused, with their prompts, and calls answered from the
cache. Ten thousand refused prompts of 25 KB; what is paid for is bounded by the budget. Without this a cell that asks in vain fills the disk."""

LINE = 1024
"""Bytes that a call or a question takes in the journal, about."""


class Recorder:
    """What :class:`~rlm_sandbox.session.asks.Asks` asks. ``cell`` tells the running cell, ``on_cut`` ends a replayed cell that was cut by a clock."""

    def __init__(self, payer: Payer | None, journal: Journal, *, cell: Callable[[], int]) -> None:
        self._payer = payer
        self._journal = journal
        self._cell = cell
        self._scripts: dict[int, Script] = {}
        self._began: dict[int, float] = {}
        self._waiting = 0
        self._waiting_since = 0.0
        self._waited: dict[int, float] = defaultdict(float)
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._free = FREE_MAX
        self.on_cut: Callable[[int], None] = lambda _: None
        self.divergence: Divergence | None = None

    def rerun(self, cell: PastCell, read: Callable[[str], bytes], *, strict: bool) -> Script:
        """Answer this cell from its record. Not ``strict``: what is not in it is bought and recorded."""
        script = self._scripts[cell.number] = Script(cell, read, strict=strict)
        return script

    def forget_scripts(self) -> None:
        """Every later call is new."""
        self._scripts.clear()

    def began(self, cell: int) -> None:
        """A cell begins: its calls' times count from here."""
        self._began[cell] = time.monotonic()
        self._waited[cell] = 0.0
        self._waiting_since = time.monotonic()

    def waited_s(self, cell: int) -> float:
        """Return the seconds in which at least one call of the cell was outstanding."""
        open_ = time.monotonic() - self._waiting_since if self._waiting else 0.0
        return self._waited.pop(cell, 0.0) + open_

    async def ask(
        self, request: Request, position: Position, observer: Callable[[CallEvent], None] | None = None
    ) -> Answer:
        """Answer from the record, or buy and record. Raises what :meth:`Account.ask` raises, recorded errors too."""
        form = form_of(request)
        digest = digest_of(form)
        if self._waiting == 0:
            self._waiting_since = time.monotonic()
        self._waiting += 1
        try:
            script, index = self._find(digest, position)
            if script is not None and index is not None:
                return _replayed(script, await script.answer(index), position, observer)
            if script is not None and script.strict:
                await self._unknown(script, request, position)
            return await self._buy(request, position, observer, form, digest)
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                self._waited[position.cell] += time.monotonic() - self._waiting_since

    def _find(self, digest: str, position: Position) -> tuple[Script | None, int | None]:
        own = self._scripts.get(position.cell)
        if own is not None and (index := own.take(digest, position.ordinal)) is not None:
            return own, index
        for script in self._scripts.values():  # a thread that outlived its cell asks under the number of a later one
            if script is not own and own is not None and (index := script.take(digest, -1)) is not None:
                return script, index
        return own, None

    async def _unknown(self, script: Script, request: Request, position: Position) -> None:
        """A strict replay was asked what the record does not hold: the cell was cut off here, or it left its record."""
        if script.cut:
            self.on_cut(position.cell)
            await asyncio.Event().wait()  # until the cell's end cancels it
        divergence = Divergence(position.cell, position.ordinal, _what(script, request))
        self.divergence = self.divergence or divergence
        raise DivergenceError(f"the replay left its record at {divergence}", hint="this call is not in the record")

    async def _buy(
        self,
        request: Request,
        position: Position,
        observer: Callable[[CallEvent], None] | None,
        form: dict[str, Any],
        digest: str,
    ) -> Answer:
        if self._payer is None:
            raise InternalError("a replay has no provider", hint="please report this as a bug")
        entry = _Entry(request, position, form, digest, self._since(position.cell))
        entry.observer = observer
        task = asyncio.create_task(self._bought(entry))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            entry.late = True
            if not entry.sent:
                task.cancel()
            raise

    def _done(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _bought(self, entry: _Entry) -> Answer:
        """Buy and record, even when nobody waits any more: it is paid for."""
        assert self._payer is not None  # noqa: S101 - the caller looked
        try:
            answer = await self._payer.ask(entry.request, entry.position, entry.see)
        except RLMError as error:
            if not entry.late:  # what ended a call that nobody waits for was our own closing, not an answer
                await self._keep(entry, None, error)
            raise
        await self._keep(entry, answer, None)
        return answer

    async def _keep(self, entry: _Entry, answer: Answer | None, error: RLMError | None) -> None:
        texts = [text.encode("utf-8", "replace") for text in texts_of(entry.request)]
        text = None if answer is None else answer.text.encode("utf-8", "replace")
        raw = answer.raw if answer is not None and answer.raw else None
        bulk = [data for data in (*texts, text, raw) if data is not None]
        size = sum(map(len, bulk)) if answer is None else 0  # what is answered again is kept already
        if self._journal.closed or ((answer is None or answer.cached) and not self._takes(size)):
            return
        names = {data: self._journal.blob(data) for data in bulk}
        usage = answer.usage if answer is not None else None
        self._journal.append(
            "call",
            cell=entry.position.cell,
            ordinal=entry.position.ordinal,
            digest=entry.digest,
            request=entry.form,
            group=entry.request.group,
            size=entry.request.size,
            outcome="failed" if answer is None else "cached" if answer.cached else "answered",
            late=entry.late,
            answer=None if text is None else names[text],
            raw=None if raw is None else names[raw],
            model=(answer.model if answer is not None else entry.model)[:512],
            usage=_numbers(usage),
            cost_micro=max(0, answer.cost_micro) if answer is not None else 0,
            attempts=entry.attempts(),
            request_id=None if answer is None or answer.request_id is None else answer.request_id[:512],
            stop_reason=None if answer is None or answer.stop_reason is None else answer.stop_reason[:512],
            asked_ms=entry.asked_ms,
            elapsed_ms=entry.elapsed_ms,
            error=None if error is None else _failure(error),
        )

    def _takes(self, size: int) -> bool:
        """Whether one more record of what costs nothing is kept. Where it is not, a replay says that the record ends."""
        if 0 < self._free <= size + LINE:
            log.warning("no more is recorded of calls that cost nothing: they have filled %d MiB", FREE_MAX >> 20)
            self._free = 0
        self._free = max(0, self._free - size - LINE)
        return self._free > 0

    async def budget(self) -> BudgetState:
        """Answer a cell's question for its budget, from the record where there is one: programs branch on it."""
        from rlm_sandbox.models import BudgetState  # noqa: PLC0415 - a heavy module, loaded by now

        cell = max(1, self._cell())
        script = self._scripts.get(cell)
        known = script.budget() if script is not None else None
        if known is not None:
            return BudgetState.model_validate(known)
        if self._payer is None or (script is not None and script.strict):
            divergence = Divergence(cell, None, "it asks for its budget once more than the record says")
            self.divergence = self.divergence or divergence
            raise DivergenceError(f"the replay left its record at {divergence}", hint="")
        state = budget_state(await self._payer.budget())
        if not self._journal.closed and self._takes(0):
            self._journal.append("budget", cell=cell, state=state.model_dump(mode="json"))
        return state

    def _since(self, cell: int) -> int:
        began = self._began.get(cell)
        return 0 if began is None else max(0, round(1000 * (time.monotonic() - began)))


class _Entry:
    """A call on its way to being recorded."""

    def __init__(self, request: Request, position: Position, form: dict[str, Any], digest: str, asked_ms: int) -> None:
        self.request = request
        self.position = position
        self.form = form
        self.digest = digest
        self.asked_ms = asked_ms
        self.late = False
        self.sent = False
        self.model = request.model or ""
        self.observer: Callable[[CallEvent], None] | None = None
        self._asked = time.monotonic()
        self._attempts: list[list[Any]] = []

    @property
    def elapsed_ms(self) -> int:
        return max(0, round(1000 * (time.monotonic() - self._asked)))

    def see(self, event: CallEvent) -> None:
        """Follow the call, and pass on what happens to whoever watches."""
        self.model = event.model
        if event.phase == Phase.SENT:
            self.sent = True
            self._attempts.append([self.elapsed_ms, "sent"])
        elif event.phase == Phase.FAULT and self._attempts:
            self._attempts[-1][1] = event.error_kind or "failed"
        elif self._attempts and event.phase in {Phase.ANSWERED, Phase.FAILED} and self._attempts[-1][1] == "sent":
            self._attempts[-1][1] = "ok" if event.phase == Phase.ANSWERED else event.error_kind or "failed"
        if self.observer is not None:
            self.observer(event)

    def attempts(self) -> list[dict[str, Any]]:
        return [{"number": n, "sent_ms": at, "outcome": what} for n, (at, what) in enumerate(self._attempts[:64], 1)]


def _numbers(usage: Usage | None) -> list[int] | None:
    if usage is None:
        return None
    numbers = [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens]
    return [min(max(0, number), 2**53) if type(number) is int else 0 for number in numbers]


def _failure(error: RLMError) -> dict[str, str]:
    code = error.code if isinstance(error, ProviderError) else error.kind
    return {"kind": error.kind, "code": code[:512], "message": error.message[:8192], "hint": error.hint[:8192]}


def _replayed(script: Script, call: r.Call, position: Position, observer: Callable[[CallEvent], None] | None) -> Answer:
    usage = Usage(*call.usage) if call.usage else Usage(0, 0)
    if observer is not None:
        phase = {"answered": Phase.ANSWERED, "cached": Phase.CACHED, "failed": Phase.FAILED}[call.outcome]
        observer(CallEvent(position, phase, call.model, error_kind=call.error.kind if call.error else None))
    if call.error is not None:
        error = from_kind(call.error.kind, call.error.message, call.error.hint)
        if isinstance(error, ProviderError):
            error.code = call.error.code
        raise error
    text = script.text(call.answer) if call.answer is not None else ""
    return Answer(
        text=text,
        model=call.model,
        usage=usage,
        cached=call.outcome == "cached",
        attempts=len(call.attempts),
        request_id=call.request_id,
        stop_reason=call.stop_reason,
    )


def _what(script: Script, request: Request) -> str:
    """Say how an unknown request differs from the one that was expected."""
    left = script.left
    if not left:
        return f"it asks for more than the {len(script.cell.calls)} recorded calls"
    form, expected = form_of(request), left[0].request
    names = [("schema_" if name == "schema" else name) for name in form]
    differ = [name.rstrip("_") for name in names if getattr(expected, name) != form[name.rstrip("_")]]
    return (
        f"it asks something else than recorded (differs from recorded call {left[0].ordinal} in: {', '.join(differ)})"
    )
