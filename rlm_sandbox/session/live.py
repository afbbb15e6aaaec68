"""A live session: one container, one account, one cell at a time.

Every message of the guest comes through :meth:`LiveSession._handle`, which never blocks; every command of a caller is a coroutine that may be abandoned
without losing the cell it started. A session ends once, for one reason, and whoever waits is told that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rlm_sandbox.errors import (
    BusyError,
    DeadlineError,
    InternalError,
    NoSuchSession,
    PolicyError,
    PrerequisiteError,
    ProtocolError,
    RLMError,
    UsageError,
)
from rlm_sandbox.models import Executed, FinalAnswer, Variable
from rlm_sandbox.sanitize import one_line, visible
from rlm_sandbox.session import documents
from rlm_sandbox.session.asks import Asks
from rlm_sandbox.session.cell import CellRun
from rlm_sandbox.session.chronicle import Chronicle
from rlm_sandbox.session.compare import KEPT
from rlm_sandbox.session.convert import micro
from rlm_sandbox.session.spool import Spool
from rlm_sandbox.session.store import AGAIN_FINAL, FinalWriter
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameError
from rlm_sandbox.wire.state import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.core import Account
    from rlm_sandbox.broker.types import CallEvent
    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.session.channel import Channel
    from rlm_sandbox.session.journal import Journal
    from rlm_sandbox.session.past import Past
    from rlm_sandbox.session.store import Store
    from rlm_sandbox.settings.model import HostPolicy, Settings

log = logging.getLogger(__name__)

CODE_MAX = m.Cell.payload_max
STDOUT_MAX = 10**7
"""Characters of output in one document, whatever a caller asks: beyond it there is the file."""

READY_S = 120.0
"""Building the namespace reads at most 64 MiB of input; beyond two minutes the guest is broken, not slow."""

BOOTS_MAX = 3
"""Interpreters that may end in a row before one was ready. One may be killed by what a cell left behind; three are no accident."""


class LiveSession:
    """One session that has a container. Made by :class:`rlm_sandbox.session.host.Host`."""

    def __init__(
        self,
        *,
        session: str,
        channel: Channel,
        account: Account,
        admitted: Admitted,
        store: Store,
        journal: Journal,
        settings: Settings,
        policy: HostPolicy,
        provider: str,
        model: str,
        runtime: str,
    ) -> None:
        self.session = session
        self.account = account
        self.settings = settings
        self.provider = provider
        self.model = model
        self.runtime = runtime
        self.store = store
        self.admitted = admitted
        self.created = datetime.now(UTC)
        self.opened = self.touched = time.monotonic()
        self.updated = time.time()
        self.ended: RLMError | None = None
        self.over = asyncio.Event()
        self._policy = policy
        self._channel = channel
        self.chronicle = Chronicle(self, journal, account)
        self.image_id = ""
        self._turn = asyncio.Lock()
        self._ready = asyncio.Event()
        self._run: CellRun | None = None
        self._last: CellRun | None = None
        self._cell = 0
        self._groups = 0
        self._stillborn = 0
        """Interpreters that ended in a row before they were ready; -1 while one is."""
        self._asks: Asks | None = None
        self._variables: list[Variable] = []
        self._variables_total = 0
        self._final: FinalAnswer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._observers: set[Callable[[CellRun], None]] = set()
        self._closing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start serving the guest; call once, after the handshake."""
        serving = asyncio.create_task(self._serve())
        serving.add_done_callback(self._served)
        self.keep(serving)

    def _served(self, serving: asyncio.Task[None]) -> None:
        """A defect that ends the serving must end the session too, or whoever waits would wait for ever."""
        if not serving.cancelled() and (defect := serving.exception()) is not None:
            log.error("session %s failed by a defect", self.session, exc_info=defect)
            reason = InternalError(f"{type(defect).__name__} in the broker", hint="see the broker's log")
            self.keep(asyncio.create_task(self.close(reason)))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task as long as the session lives."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What the guest says

    async def _serve(self) -> None:
        try:
            await self._channel.run(self._handle)
        except FrameError as exc:
            hint = "code in the session tampered with the channel; start a new session"
            await self.close(ProtocolError(f"the guest broke the channel's rules: {exc}", hint=hint))
        except RLMError as exc:
            await self.close(exc)
        except OSError as exc:
            await self.close(
                ProtocolError(f"the channel broke: {exc}", hint="the engine ended the connection; start again")
            )

    def _handle(self, message: m.Message) -> None:
        """Take one message, already checked against grammar and state; must not block."""
        run = self._run
        match message:
            case m.Output():
                if run is not None and message.cell == run.cell:
                    run.output_bytes += len(message.payload)
                    run.spool.feed(message.payload)
            case m.Expired():
                if run is not None and message.cell == run.cell:
                    run.expired = True
            case m.Final():
                self._take_final(message)
            case m.Result():
                self._take_result(message)
            case m.CellClosed():
                self._cell_closed(message)
            case m.KernelUp() | m.Ready() | m.KernelDown():
                self._take_kernel(message)
            case _:
                self._take_request(message)

    def _take_kernel(self, message: m.KernelUp | m.Ready | m.KernelDown) -> None:
        match message:
            case m.KernelUp():
                self._kernel_up()
            case m.Ready():
                self._stillborn = -1
                self.chronicle.kernel_ready(self._ready)
            case m.KernelDown():
                self._kernel_down(message)

    def _take_request(self, message: m.Message) -> None:
        if isinstance(message, m.Ask) and self._run is not None:
            self._run.calls_planned = max(self._run.calls_planned, message.ordinal + 1)
        if self._asks is not None:
            self._asks.handle(message)

    def _kernel_up(self) -> None:
        gen = self._channel.connection.gen
        self._groups += 1 << 32
        in_turn = asyncio.Lock()

        async def reply(message: m.Message) -> None:
            async with in_turn:  # the next answer is queued when the guest has taken the last: a full window of large ones never piles up here
                live = self._channel.connection
                if live.gen != gen or live.kernel not in {Kernel.IDLE, Kernel.RUNNING}:
                    return  # whoever asked is gone
                try:
                    self._channel.send(message)
                    await self._channel.drain()
                except RLMError as exc:
                    self.keep(asyncio.create_task(self.close(exc)))

        payer = self.chronicle.recorder
        self._asks = Asks(payer, reply, observer=self._observe, cell=lambda: self.cell, group_base=self._groups)

    def _kernel_down(self, message: m.KernelDown) -> None:
        if self.ended is None:
            self._ready.clear()
        self._variables, self._variables_total = [], 0
        if self._asks is not None:
            self._asks.close()
            self._asks = None
        self._stillborn += 1
        if self._stillborn >= BOOTS_MAX:
            self.keep(asyncio.create_task(self.close(self._never_ready(message))))
        run = self._run
        fate = self.chronicle.kernel_down(message, run)
        if run is None:
            return
        if run.reported:  # it ended after its result: the outcome stands
            run.warnings.append(f"the interpreter ended after this cell; {fate}")
        else:
            run.expired = run.expired or message.expired
            run.died(message.cause, message.code, fate)
        run.spool.dropped += message.dropped
        self._settle(run)

    def _never_ready(self, last: m.KernelDown) -> RLMError:
        what = f"the interpreter ended {BOOTS_MAX} times in a row before it was ready"
        if last.cause == "memory":
            return PrerequisiteError(f"{what}, out of memory", hint="start the session again with more --memory")
        return PrerequisiteError(
            f"{what} ({last.cause} {last.code})", hint="run: rlm-sandbox image build; if it goes on, rlm-sandbox doctor"
        )

    def _take_final(self, message: m.Final) -> None:
        run = self._run
        if run is None:
            raise FrameError("a final answer outside a cell")
        if run.writer is None:
            run.writer = FinalWriter(self.store)
            run.final_kind, run.final_name, run.final_length = message.kind, message.name, message.length
        if not run.writer.add(message.payload, last=message.last):
            raise FrameError("a final answer that is too large, or goes on after its end")

    def _take_result(self, message: m.Result) -> None:
        run = self._run
        if run is None:
            raise FrameError("a result outside a cell")
        run.reported = True
        error = message.payload.decode("utf-8", "replace")
        if run.expired:
            run.fail("timeout", f"the cell was interrupted after its timeout of {run.timeout_s:g} s\n{error}".rstrip())
        elif message.status == "interrupted":
            run.fail("interrupted", error or "interrupted")
        elif message.status == "error":
            run.fail("error", error)
        else:
            run.status = "ok"
        run.warnings += [one_line(text) for text in message.warnings]
        self._variables = [
            Variable(name=visible(entry["name"]), type=visible(entry["type"]), len=entry["len"])
            for entry in message.variables
        ]
        self._variables_total = message.variables_total
        self._channel.send(m.CellEnd(run.cell))
        if run.output_bytes < self.settings.output_max:
            # What the cell wrote came before its result, and none of it was dropped: there is nothing to wait for. The next
            # cell may be on its way before this one is closed, because the agent takes both in the order in which they are sent.
            self._settle(run)

    def _cell_closed(self, message: m.CellClosed) -> None:
        run = self._run
        if run is not None and run.reported and message.cell == run.cell:
            run.spool.dropped += message.dropped
            self._settle(run)

    def _settle(self, run: CellRun) -> None:
        """The cell is over, whatever came of it: keep its answer and let the next one in."""
        if run.writer is not None:
            if run.writer.complete:
                self._commit_final(run)
            else:
                run.writer.abandon()
        if run.spool.dropped:
            run.warnings.append(f"{run.spool.dropped} bytes of output were over the limit and not kept")
        run.finish()
        self.chronicle.result(run)
        self._run = None
        if run.again:
            return
        self._last = run
        self.touch()
        self._turn.release()

    def _commit_final(self, run: CellRun) -> None:
        assert run.writer is not None  # noqa: S101 - the caller looked
        run.final_digest, run.final_bytes = run.writer.digest, run.writer.size
        if run.again:
            run.writer.commit(self.store.folder / AGAIN_FINAL)
            return
        run.writer.commit()
        run.final = self._final = documents.final(
            self.store, run.final_kind, run.final_name, run.final_length, preview=self.settings.stdout_max
        )

    def _observe(self, event: CallEvent) -> None:
        run = self._run
        if run is not None and event.position.cell == run.cell:
            if event.phase in {"answered", "failed", "cached"}:
                run.calls_done += 1
                run.calls_failed += event.phase == "failed"
                run.cost_micro += event.cost_micro
                run.tokens += event.usage.total_in + event.usage.output_tokens if event.usage else 0
            for observer in tuple(self._observers):
                observer(run)

    # What callers ask

    def touch(self) -> None:
        """Someone used the session: the idle clock starts anew."""
        self.touched = time.monotonic()
        self.updated = time.time()

    async def execute(
        self, code: bytes, *, timeout_s: float | None, wait_s: float | None, stdout_max: int | None
    ) -> Executed:
        """Run a cell and return its document, or one with status ``running`` when ``wait_s`` is over first.

        A cell sent while another runs waits for its turn within ``wait_s``; then :class:`BusyError`, and nothing was run.
        """
        timeout_s = self.settings.cell_timeout if timeout_s is None else timeout_s
        if not 0 < timeout_s <= self._policy.max_cell_timeout:
            allowed = self._policy.max_cell_timeout
            if timeout_s > allowed:
                raise PolicyError(
                    f"--timeout {timeout_s:g} is over the host's policy of {allowed:g}", hint=f"use {allowed:g} or less"
                )
            raise UsageError("--timeout must be more than 0", hint="give seconds, e.g. --timeout 30")
        if len(code) > CODE_MAX:
            raise UsageError(
                f"the code is {len(code)} bytes, more than {CODE_MAX}", hint="put data into the input, not into code"
            )
        started = time.monotonic()
        await self._take_turn(wait_s)
        try:
            await self._until_ready()
            run = self._send_cell(code, timeout_s, stdout_max)
        except BaseException:
            self._turn.release()
            raise
        try:
            await self._channel.drain()
        except RLMError as exc:
            await self.close(exc)
            raise
        left = None if wait_s is None else max(0.0, wait_s - (time.monotonic() - started))
        return await self._document(run, left, stdout_max)

    async def _take_turn(self, wait_s: float | None) -> None:
        self._check_open()
        self.touch()
        try:
            async with asyncio.timeout(wait_s if wait_s is None or wait_s > 0 else 0.001):
                await self._turn.acquire()
        except TimeoutError:
            running = self._run.cell if self._run else self._cell
            raise BusyError(
                f"cell {running} is still running; this one was not run",
                hint=f"rlm-sandbox wait --session {self.session}, or rlm-sandbox interrupt --session {self.session}",
            ) from None
        if self.ended is not None:
            self._turn.release()
            self._check_open()

    async def _until_ready(self) -> None:
        """Wait for an interpreter; on return nothing has happened since it was seen to be idle."""
        try:
            async with asyncio.timeout(READY_S):
                while not self._ready.is_set():
                    await self._ready.wait()
        except TimeoutError:
            raise DeadlineError(
                f"the interpreter of session {self.session} did not come up in {READY_S:.0f} s; the cell was not run",
                hint="give it more --memory: stop the session and start it again",
            ) from None
        self._check_open()

    def _send_cell(self, code: bytes, timeout_s: float, stdout_max: int | None) -> CellRun:
        """Journal a cell and queue it for the guest. Must not await: the interpreter was idle a moment ago, not later."""
        self._cell += 1
        shown = max(self.settings.stdout_max, min(stdout_max or 0, STDOUT_MAX), KEPT)
        spool = Spool(self.store.stdout(self._cell), shown_max=shown, file_max=self.settings.output_max)
        run = CellRun(self._cell, timeout_s, spool)
        self.chronicle.cell(run, code)
        self._begin(run, code)
        return run

    def _begin(self, run: CellRun, code: bytes) -> None:
        self.chronicle.recorder.began(run.cell)
        self._channel.send(m.CellBegin(run.cell, max(1, round(run.timeout_s * 1000))), m.Cell(run.cell, code))
        self._run = run

    # What the chronicle does with a session

    @property
    def cell(self) -> int:
        """The number of the cell that runs, or ran last."""
        return self._run.cell if self._run is not None else self._cell

    @property
    def last_cell(self) -> int:
        """The number of the latest cell that a caller sent."""
        return self._cell

    @property
    def generation(self) -> int:
        """Which interpreter this is, counted from 1."""
        return self._channel.connection.gen

    @property
    def variables(self) -> list[Variable]:
        """The variables as the interpreter last reported them, at most 200 of them."""
        return self._variables

    @property
    def variables_total(self) -> int:
        """How many variables there are."""
        return self._variables_total

    @property
    def final(self) -> FinalAnswer | None:
        """The latest final answer."""
        return self._final

    @property
    def container(self) -> str:
        """The container's id."""
        return self._channel.container.id

    def cut(self, cell: int) -> None:
        """Interrupt a cell that is run again at the point where it was interrupted at first."""
        self._channel.send(m.Interrupt(cell))

    async def begin_again(self, run: CellRun, code: bytes) -> None:
        """Send a recorded cell to an idle interpreter; it is nobody's turn."""
        self._begin(run, code)
        await self._channel.drain()

    async def continue_cell(self, cell: int, code: bytes, timeout_s: float) -> None:
        """Run a cell that was cut off, under its own number and as anyone's."""
        await self._take_turn(None)
        await self._until_ready()
        self._cell = cell - 1
        self._send_cell(code, timeout_s, None)
        await self._channel.drain()

    def recall(self, past: Past) -> None:
        """Take up the numbering and the final answer of an earlier life."""
        self._cell = past.last_cell
        if past.final is not None and self.store.final.is_file():
            length = len(self.store.read_final().decode("utf-8", "replace"))
            self._final = documents.final(
                self.store, past.final.kind, past.final.name, length, preview=self.settings.stdout_max
            )

    async def until_ready(self) -> None:
        """Wait for an interpreter."""
        await self._until_ready()

    async def wait(self, wait_s: float | None, stdout_max: int | None) -> Executed:
        """Return the document of the running cell, or of the last one."""
        self._check_open()
        self.touch()
        run = self._last if self._run is None or self._run.again else self._run
        if run is None:
            raise UsageError(f"session {self.session} has run no cell yet", hint="send one with rlm-sandbox exec")
        return await self._document(run, wait_s, stdout_max)

    async def interrupt(self, wait_s: float | None, stdout_max: int | None) -> Executed:
        """Interrupt the running cell and return its document; harmless when none runs."""
        run = self._run
        if run is not None and not run.interrupted and self.ended is None:
            run.interrupted = True
            if not run.again:
                self.chronicle.write("interrupt", cell=run.cell)
            self._channel.send(m.Interrupt(run.cell))
        return await self.wait(wait_s, stdout_max)

    async def _document(self, run: CellRun, wait_s: float | None, stdout_max: int | None) -> Executed:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await run.done.wait()
        if self.ended is not None and run.status == "running":
            raise self.ended
        self.touch()
        return await documents.executed(self, run, self.settings.stdout_max if stdout_max is None else stdout_max)

    async def set_limits(self, **changes: int | None) -> None:
        """Change caps from outside; ``calls``, ``tokens``, ``token_warning``, ``cost_micro``. The policy still holds."""
        calls, cost = changes.get("calls"), changes.get("cost_micro")
        policy = self._policy
        if calls is not None and policy.max_calls is not None and calls > policy.max_calls:
            raise PolicyError(
                f"{calls} calls are over the host's policy of {policy.max_calls}",
                hint=f"use {policy.max_calls} or less",
            )
        if cost is not None and policy.max_cost is not None and cost > micro(policy.max_cost):
            raise PolicyError(f"the cost limit is over the host's policy of {policy.max_cost} USD", hint="use less")
        self.chronicle.write("limits", changes=changes)
        await self.account.set_limits(**changes)

    def watch(self, observer: Callable[[CellRun], None]) -> Callable[[], None]:
        """Call ``observer`` after each sub-call; returns how to stop."""
        self._observers.add(observer)
        return lambda: self._observers.discard(observer)

    @property
    def running(self) -> CellRun | None:
        """The cell that runs now."""
        return self._run

    def _check_open(self) -> None:
        if self.ended is not None:
            raise NoSuchSession(
                f"session {self.session} has ended: {self.ended.message}",
                hint=f"go on with rlm-sandbox resume --session {self.session}: variables, budget and answers are kept",
            )

    async def close(self, reason: RLMError) -> None:
        """End the session; safe to call from anywhere, any number of times. Returns when nothing of it is left.

        Raises:
            EngineError: the container could not be removed; everything else is freed all the same.
        """
        if self._closing is None:
            self.ended = reason
            self._closing = asyncio.create_task(self._close(reason))
        await asyncio.shield(self._closing)

    async def _close(self, reason: RLMError) -> None:
        async with contextlib.AsyncExitStack() as then:  # each step is taken whatever became of the one before
            then.callback(self._cancel_tasks)
            then.callback(self.store.release)
            then.callback(self.chronicle.end, reason)
            then.push_async_callback(asyncio.to_thread, self._drop_input)
            then.push_async_callback(self.chronicle.finish_input)
            then.push_async_callback(self.account.close)
            then.push_async_callback(self._channel.container.close)
            with contextlib.suppress(FrameError, RLMError, OSError):
                self._channel.send(m.Bye())
            if self._asks is not None:
                self._asks.close()
            self._abandon_run()
            self.over.set()
            self._ready.set()

    def _abandon_run(self) -> None:
        """Whoever waits for the running cell is told why there will be no result."""
        run, self._run = self._run, None
        if run is None:
            return
        if run.writer is not None and not run.writer.complete:
            run.writer.abandon()
        run.spool.close()
        run.done.set()
        if run.again:  # nobody's turn
            return
        self._last = run
        self._turn.release()

    def _drop_input(self) -> None:
        self.admitted.close()
        self.store.drop_stage()

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
