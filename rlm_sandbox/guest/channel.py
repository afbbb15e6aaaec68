"""The kernel's end of the channel: any thread may call, two threads do all the input and output.

The invariant is that no caller ever holds a lock or writes a byte itself. A call is handed over with one
``SimpleQueue.put``, which a signal cannot cut in two, so a ``KeyboardInterrupt`` (or whatever a cell's own signal handler
raises) at any instant leaves the stream whole. The writer thread alone gives out ids, groups and ordinals, so that ids
go out in order, and holds calls back while a full window is outstanding.
"""

from __future__ import annotations

import _thread
import os
from _queue import SimpleQueue
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest.errors import PolicyError, RLMError, Truncated, from_answer
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameDecoder, FrameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

READ = 64 * 1024
"""Bytes per read. A buffer of 128 KiB or more would be mapped and unmapped by the allocator at every message, under three threads."""

BYTES_OUT_MAX = 64 * 1024 * 1024
"""Bytes of prompts and shared texts that the host is made to hold at once, unless a single call has more. The host allows four
times that, since it lets go of a text a little later than we count it gone; passing its limit would end the session."""

SHARES_OUT_MAX = 512
"""Shared texts alive at once: every call of a full window may come from a thread with texts of its own."""

BROKEN = 70
"""Exit status of a kernel that lost its channel: a mute kernel would only wait for its deadline."""


class Shared:
    """A text that many calls name. Sent with the first call that does, so a batch that never starts costs nothing."""

    __slots__ = ("id", "payload")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.id: int | None = None


class Call:
    """One question to the host. ``fields`` are those of ``Ask`` that the caller decides; ``None`` asks for the budget."""

    __slots__ = ("_done", "dropped", "fields", "id", "ordinal", "outcome", "payload", "shared", "size")

    def __init__(
        self, fields: dict[str, Any] | None, payload: bytes = b"", shared: dict[str, Shared] | None = None
    ) -> None:
        self.fields = fields
        self.payload = payload
        self.size = len(payload)
        self.shared = shared or {}
        self.id = 0
        self.ordinal = 0
        self.dropped = False
        self.outcome: str | RLMError | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()

    def settle(self, outcome: str | RLMError) -> None:
        """Wake the caller, once; called by the channel's threads only."""
        if self.outcome is None:
            self.outcome = outcome
            self.payload = b""
            self._done.release()

    def wait(self) -> str | RLMError:
        """Wait for the outcome; a signal handler may raise out of here."""
        if self.outcome is None:
            self._done.acquire()
        if self.outcome is None:
            msg = "the call was woken without an outcome"
            raise RLMError(msg)
        return self.outcome


class Channel:
    """See the module. ``on_cell`` is called in the reader thread with each ``Cell``."""

    def __init__(self, read_fd: int, write_fd: int, *, window: int, on_cell: Callable[[m.Cell], None]) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._window = window
        self._on_cell = on_cell
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._held: deque[Call] = deque()
        self._sent: dict[int, Call] = {}
        self._out = 0
        self._shares_out = 0
        self._last_id = 0
        self._last_group = 0
        self._next_ordinal = 0
        self.closed = False
        os.register_at_fork(after_in_child=self._after_fork)

    def start(self) -> None:
        """Start both threads. They are not ``threading`` threads: a cell that lists or joins its threads does not see them."""
        _thread.start_new_thread(self._write_loop, ())
        _thread.start_new_thread(self._read_loop, ())

    def _after_fork(self) -> None:
        self.closed = True
        for fd in (self._read_fd, self._write_fd):
            try:
                os.close(fd)
            except OSError:
                continue

    # What callers use: each is one put.

    def do(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the writer thread, after all that was handed over before."""
        self._work.put(action)

    def ask(self, calls: list[Call]) -> list[str | RLMError]:
        """Hand over the calls of one batch, wait for all, return their outcomes in order. Interrupted, cancels the rest."""
        if self.closed:
            msg = "llm_query works only in the main process of the session, not in a forked child"
            raise RLMError(msg, "use threads, or llm_query_batch, which runs its calls side by side")
        try:
            self._work.put(lambda: self._admit(calls))
            return [call.wait() for call in calls]
        except BaseException:
            self._work.put(lambda: self._cancel(calls))
            raise
        finally:
            self._work.put(lambda: self._unshare(calls))

    def begin_cell(self) -> None:
        """A cell begins: its calls are counted from 0. Main thread only; where nothing was counted the writer is not woken."""
        if self._next_ordinal or not self._work.empty():
            self._work.put(self._reset_ordinals)

    def _reset_ordinals(self) -> None:
        self._next_ordinal = 0

    # What only the writer thread runs.

    def _write_loop(self) -> None:
        try:
            while True:
                self._work.get()()
                while self._held and self._has_room(self._held[0]):
                    self._send_call(self._held.popleft())
        finally:
            os._exit(BROKEN)

    def write(self, *frames: m.Message) -> None:
        """Write whole frames. Writer thread only (see :meth:`do`)."""
        for frame in frames:
            view = memoryview(frame.encode())
            while view:
                view = view[os.write(self._write_fd, view) :]

    def _admit(self, calls: list[Call]) -> None:
        self._last_group += 1
        for call in calls:
            if call.fields is not None:
                call.fields = {**call.fields, "group": self._last_group}
                call.ordinal = self._next_ordinal
                self._next_ordinal += 1
        self._held.extend(calls)

    def _has_room(self, call: Call) -> bool:
        if call.dropped or not (self._sent or self._shares_out):
            return True
        new = [shared for shared in call.shared.values() if shared.id is None]
        size = call.size + sum(len(shared.payload) for shared in new)
        return (
            len(self._sent) < self._window
            and self._out + size <= BYTES_OUT_MAX
            and self._shares_out + len(new) <= SHARES_OUT_MAX
        )

    def _settled(self, call: Call) -> None:
        self._out -= call.size

    def _send_call(self, call: Call) -> None:
        if call.dropped:
            return
        try:
            for shared in call.shared.values():
                if shared.id is None:
                    shared.id = self._new_id()
                    self._shares_out += 1
                    self._out += len(shared.payload)
                    self.write(m.Share(id=shared.id, payload=shared.payload))
            call.id = self._new_id()
            self._sent[call.id] = call
            self._out += call.size
            self.write(self._message(call))
        except FrameError as exc:
            if self._sent.pop(call.id, None) is not None:
                self._settled(call)
            call.settle(PolicyError(f"the call does not fit the channel: {exc}"))

    def _message(self, call: Call) -> m.Message:
        if call.fields is None:
            return m.AskBudget(id=call.id)
        named: dict[str, Any] = {"system": None, "prefix": None, "schema": None}
        named.update((name, shared.id) for name, shared in call.shared.items())
        return m.Ask(id=call.id, ordinal=call.ordinal, payload=call.payload, **named, **call.fields)

    def _cancel(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.dropped = True
            if self._sent.pop(call.id, None) is not None:
                self._settled(call)
                if call.fields is not None:
                    self.write(m.Cancel(id=call.id))

    def _unshare(self, calls: list[Call]) -> None:
        done = {id(shared): shared for call in calls[:1] for shared in call.shared.values()}
        for shared in done.values():
            if shared.id is not None:
                self._shares_out -= 1
                self._out -= len(shared.payload)
                self.write(m.Unshare(id=shared.id))

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # What only the reader thread runs.

    def _read_loop(self) -> None:
        decoder = FrameDecoder()
        parse = m.parser(m.HOST_TO_KERNEL)
        try:
            while data := os.read(self._read_fd, READ):
                decoder.feed(data)
                for header, payload in decoder:
                    self._dispatch(parse(header, payload))
        finally:
            os._exit(BROKEN)

    def _dispatch(self, message: m.Message) -> None:
        if isinstance(message, m.Cell):
            self._on_cell(message)
        elif isinstance(message, (m.Answer, m.BudgetInfo)):
            call = self._sent.pop(message.id, None)
            if call is None:
                return
            self._work.put(partial(self._settled, call))  # counted there; it also makes the writer look for room
            text = message.payload.decode("utf-8", "replace")
            if isinstance(message, m.BudgetInfo) or message.kind == "ok":
                cut = isinstance(message, m.Answer) and message.code == "truncated"
                call.settle(Truncated(text) if cut else text)
            else:
                call.settle(from_answer(message.kind, message.code, text))
