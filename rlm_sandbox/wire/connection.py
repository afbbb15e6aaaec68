"""The host's end of the channel as a pure state machine: bytes in, events out, bytes to send back.

It owns the nesting of the two conversations: outer frames from the agent, and inside ``KernelOut`` the frames of the current
kernel. A kernel that dies takes its half-written frame with it; bytes of an older generation are dropped. Every violation raises
:class:`FrameError` and closes the connection for good, because nothing a liar says afterwards can be placed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire import state
from rlm_sandbox.wire.frames import FrameDecoder, FrameError

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTER_PAYLOAD_MAX = m.WRAPPED_CHUNK


class HostConnection:
    """One per container. ``agent`` and ``kernel`` are the current states, ``gen`` the live kernel's generation (0: none)."""

    def __init__(self) -> None:
        self.agent = state.Agent.SILENT
        self.kernel = state.Kernel.DOWN
        self.gen = 0
        self.cell = 0
        self._closing = 0
        self._last_id = 0
        self._outer = FrameDecoder(payload_max=OUTER_PAYLOAD_MAX)
        self._inner = FrameDecoder()
        self._parse_outer = m.parser(m.AGENT_TO_HOST)
        self._parse_inner = m.parser(m.KERNEL_TO_HOST)

    def send(self, message: m.Message) -> bytes:
        """Return the bytes that carry ``message``, and move on. Raises ``FrameError`` when it may not be sent now."""
        if type(message) in m.HOST_TO_KERNEL:
            self.kernel = state.kernel_step(self.kernel, message)
            if isinstance(message, m.Cell):
                self.cell = message.cell
            return self._wrap(message.encode())
        self.agent = state.agent_step(self.agent, message)
        if isinstance(message, m.CellEnd):
            self._closing = message.cell
        return message.encode()

    def _wrap(self, raw: bytes) -> bytes:
        step = m.WRAPPED_CHUNK
        return b"".join(m.KernelIn(self.gen, raw[at : at + step]).encode() for at in range(0, len(raw), step))

    def receive(self, data: bytes) -> Iterator[m.Message]:
        """Yield the messages that ``data`` completes, outer and inner, in order; ``KernelOut`` itself is not shown."""
        if self.agent is state.Agent.CLOSED:
            return
        try:
            self._outer.feed(data)
            for header, payload in self._outer:
                message = self._parse_outer(header, payload)
                self.agent = state.agent_step(self.agent, message)
                yield from self._outer_message(message)
        except FrameError:
            self.agent = state.Agent.CLOSED
            self.kernel = state.Kernel.DOWN
            raise

    def _outer_message(self, message: m.Message) -> Iterator[m.Message]:
        if not isinstance(message, m.KernelOut):
            self._note(message)
            yield message
        elif message.gen == self.gen and self.kernel is not state.Kernel.DOWN:
            yield from self._from_kernel(message.payload)
        elif message.gen > self.gen:
            self._violation("bytes of a kernel that was not announced")

    def _note(self, message: m.Message) -> None:
        """Check what a message claims against what is known, and remember what it changes."""
        if isinstance(message, m.KernelUp):
            if message.gen != self.gen + 1 or self.kernel is not state.Kernel.DOWN:
                self._violation("kernel generation out of order")
            self.gen = message.gen
            self.kernel = state.Kernel.BOOTING
            self._inner = FrameDecoder()
            self._last_id = 0
        elif isinstance(message, m.KernelDown):
            if message.gen != self.gen or self.kernel is state.Kernel.DOWN:
                self._violation("end of a kernel that is not live")
            self.kernel = state.Kernel.DOWN
        elif isinstance(message, m.CellClosed):
            if message.cell != self._closing:
                self._violation("a cell was closed that is not closing")
            self._closing = 0
        elif isinstance(message, m.Expired) and message.cell > self.cell:
            self._violation("a cell expired that was never sent")

    def _from_kernel(self, data: bytes) -> Iterator[m.Message]:
        self._inner.feed(data)
        for header, payload in self._inner:
            message = self._parse_inner(header, payload)
            self.kernel = state.kernel_step(self.kernel, message)
            if isinstance(message, (m.Final, m.Result)) and message.cell != self.cell:
                self._violation("result of another cell")
            if isinstance(message, (m.Ask, m.AskBudget, m.Share)):
                if message.id <= self._last_id:
                    self._violation("an id was used twice")
                self._last_id = message.id
            yield message

    @staticmethod
    def _violation(what: str) -> None:
        raise FrameError(what)
