"""PID 1 of the container: owns the channel, the clock and the processes, and never reads what the kernel says.

One thread, one poll loop, no blocking write. What cannot be sent yet waits in a bounded queue; while that is full nothing more is
read from the kernel, so a host that does not read stops the kernel and not the agent. Orders of the host are always read.
Whatever ends the conversation (end of file, ``Bye``, a malformed frame, the end of the lifetime) ends every process.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios
import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from rlm_sandbox.guest import linux, spawn
from rlm_sandbox.wire import PROTOCOL_VERSION, state
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameDecoder, FrameError

if TYPE_CHECKING:
    from rlm_sandbox.guest.confine import Watch

QUEUE_MAX = 1024 * 1024
"""Bytes waiting for the host from which on the kernel is not read: one second of a slow channel, far below any memory limit."""

READ = 64 * 1024
"""Bytes per read and write. A buffer of 128 KiB or more would be mapped and unmapped by the allocator at every turn."""

BACKLOG_MAX = 256 * 1024 * 1024
"""Bytes that a kernel has not taken from its pipe. A full window of large answers fits; a kernel this deaf is ended."""

OK = 0
BROKEN = 70
_PRIVATE_FDS = 100
_RESPAWN_FIRST = 0.05
_RESPAWN_MAX = 5.0
"""Seconds before a kernel that died without any cell is replaced; doubling, so that one that cannot start does not spin."""


class Agent:
    """See the module. ``stdin`` and ``stdout`` are the channel's descriptors, private to this process."""

    def __init__(self, stdin: int, stdout: int, wakeup: int, watch: Watch | None = None) -> None:
        self._watch = watch
        self._look_at = 0.0
        self._exceeded: str | None = None
        self._stdin = stdin
        self._stdout = stdout
        self._wakeup = wakeup
        self._state = state.Agent.SILENT
        self._decoder = FrameDecoder(payload_max=m.WRAPPED_CHUNK)
        self._parse = m.parser(m.HOST_TO_AGENT)
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._settings = b""
        self._grace = 0.0
        self._output_max = 0
        self._ends_at: float | None = None
        self._farewell = False
        self._kernel: spawn.KernelProcess | None = None
        self._gen = 0
        self._respawn_at: float | None = None
        self._failures = 0
        self._cell = 0
        self._expires_at: float | None = None
        self._kill_at: float | None = None
        self._expired = False
        self._overdue = False
        self._room = 0
        self._dropped = 0
        self._begun = False

    def run(self) -> NoReturn:
        """Serve until the conversation ends, then end every process and exit."""
        code = OK
        try:
            while not (self._farewell and not self._queue):
                if not self._turn():
                    break
        except FrameError:
            code = BROKEN
        spawn.kill_everything(self._kernel)
        os._exit(code)

    def _turn(self) -> bool:
        """Wait for something to happen and handle it; False when the host is gone."""
        ready = self._poll()
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if ready.get(self._stdout, 0) & (select.POLLERR | select.POLLHUP) or not self._flush():
            return False
        if self._stdin in ready and not self._listen():
            return False
        now = time.monotonic()
        if self._ends_at is not None and now >= self._ends_at:
            return False
        spawn.reap(self._kernel)
        kernel = self._kernel
        if kernel is not None:
            if kernel.stdin in ready:
                self._feed(kernel)
            if kernel.output in ready or kernel.out in ready:
                self._relay(kernel, hung_up=bool(ready.get(kernel.output, 0) & select.POLLHUP))
            if kernel.status is not None:
                self._bury(kernel)
        self._check_clock(now)
        self._check_watch(now)
        if self._respawn_at is not None and now >= self._respawn_at and self._queued < QUEUE_MAX:
            self._spawn()
        return self._flush()

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._stdin, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._stdout, select.POLLOUT if self._queue else 0)
        kernel = self._kernel
        if kernel is not None:
            if self._queued < QUEUE_MAX:
                if kernel.output_open:
                    poll.register(kernel.output, select.POLLIN)
                if kernel.out_open:
                    poll.register(kernel.out, select.POLLIN)
            if kernel.backlog:
                poll.register(kernel.stdin, select.POLLOUT)
        return dict(poll.poll(self._timeout_ms()))

    def _timeout_ms(self) -> int | None:
        marks = [self._ends_at, self._expires_at, self._kill_at]
        if self._queued < QUEUE_MAX:
            marks.append(self._respawn_at)
        if self._watch is not None and self._kernel is not None:
            marks.append(self._look_at)
        times = [mark for mark in marks if mark is not None]
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None

    # The host.

    def _send(self, message: m.Message) -> None:
        self._state = state.agent_step(self._state, message)
        raw = message.encode()
        self._queue.append(memoryview(raw))
        self._queued += len(raw)

    def _flush(self) -> bool:
        while self._queue:
            head = self._queue[0]
            try:
                sent = os.write(self._stdout, head)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._queued -= sent
            if sent < len(head):
                self._queue[0] = head[sent:]
            else:
                self._queue.popleft()
        return True

    def _listen(self) -> bool:
        try:
            data = os.read(self._stdin, READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._decoder.feed(data)
        for header, payload in self._decoder:
            message = self._parse(header, payload)
            self._state = state.agent_step(self._state, message)
            if isinstance(message, m.Bye):
                return False
            self._obey(message)
        if (
            self._begun and self._kernel is not None
        ):  # once the cell is on its way: the kernel begins while this is read
            self._kernel.oom_kills = linux.oom_kills()
        self._begun = False
        return True

    def _obey(self, message: m.Message) -> None:
        if isinstance(message, m.KernelIn):
            self._to_kernel(message)
        elif isinstance(message, m.CellBegin):
            self._begin(message)
        elif isinstance(message, m.CellEnd):
            self._end(message.cell)
        elif isinstance(message, m.Interrupt):
            if message.cell == self._cell:
                self._interrupt()
        elif isinstance(message, m.Hello):
            self._greet(message)
        elif isinstance(message, m.Go):
            self._settings = message.payload
            self._spawn()

    def _greet(self, hello: m.Hello) -> None:
        from rlm_sandbox.guest import report  # noqa: PLC0415 - needed once

        self._grace = hello.grace_ms / 1000
        self._ends_at = time.monotonic() + hello.lifetime_ms / 1000
        self._output_max = self._room = hello.output_max
        self._send(report.build(hello.sample))
        if hello.protocol != PROTOCOL_VERSION:
            self._farewell = True
            return
        self._flush()
        spawn.preload()

    def _to_kernel(self, message: m.KernelIn) -> None:
        kernel = self._kernel
        if kernel is None or message.gen != kernel.gen:
            return
        kernel.backlog += message.payload
        self._feed(kernel)
        if len(kernel.backlog) > BACKLOG_MAX:
            self._overdue = True
            kernel.kill()

    @staticmethod
    def _feed(kernel: spawn.KernelProcess) -> None:
        try:
            while kernel.backlog:
                with memoryview(kernel.backlog) as view, view[:READ] as part:
                    sent = os.write(kernel.stdin, part)
                del kernel.backlog[:sent]
        except BlockingIOError:
            return
        except OSError:
            kernel.backlog.clear()

    # Cells.

    def _begin(self, message: m.CellBegin) -> None:
        self._cell = message.cell
        self._expires_at = time.monotonic() + message.timeout_ms / 1000
        self._kill_at = None
        self._expired = self._overdue = False
        self._failures = 0
        self._room = self._output_max
        self._dropped = 0
        self._begun = True

    def _end(self, cell: int) -> None:
        if self._cell not in (0, cell):
            self._send(m.CellClosed(cell=cell, dropped=0, strays=0))
            return
        self._expires_at = self._kill_at = None
        strays = 0
        if self._kernel is not None:
            strays = spawn.kill_strays(self._kernel)
            self._drain(self._kernel)
        self._send(m.CellClosed(cell=cell, dropped=self._dropped if self._cell else 0, strays=strays))
        self._no_cell()

    def _no_cell(self) -> None:
        self._cell = 0
        self._expires_at = self._kill_at = None
        self._expired = self._overdue = False
        self._room = self._output_max
        self._dropped = 0

    def _interrupt(self) -> None:
        if self._kernel is None:
            return
        self._kernel.interrupt(self._cell)
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace

    def _check_clock(self, now: float) -> None:
        if self._expires_at is not None and now >= self._expires_at:
            self._expires_at = None
            self._expired = True
            self._send(m.Expired(cell=self._cell))
            self._interrupt()
        elif self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._overdue = True
            if self._kernel is not None:
                self._kernel.kill()

    def _check_watch(self, now: float) -> None:
        """Enforce memory and processes where the runtime does not: the interpreter and all it started go."""
        if self._watch is None or self._kernel is None or now < self._look_at:
            return
        self._look_at = now + self._watch.EVERY_S
        exceeded = self._watch.over()
        if exceeded is not None:
            self._exceeded = exceeded
            self._kernel.kill()

    # The kernel.

    def _spawn(self) -> None:
        try:
            self._kernel = spawn.KernelProcess(self._settings, self._gen + 1)
        except OSError:
            self._respawn_at = time.monotonic() + _RESPAWN_FIRST
            return
        self._respawn_at = None
        self._gen += 1
        self._send(m.KernelUp(gen=self._gen))

    def _relay(self, kernel: spawn.KernelProcess, *, hung_up: bool = False) -> None:
        """Pass on what the kernel said, after the output that was written before it said that."""
        said = b""
        if kernel.out_open:
            try:
                said = os.read(kernel.out, READ)
                kernel.out_open = bool(said)
            except BlockingIOError:
                pass
        self._drain(kernel, hung_up=hung_up)
        if said:
            self._send(m.KernelOut(gen=kernel.gen, payload=said))

    def _drain(self, kernel: spawn.KernelProcess, *, hung_up: bool = False) -> None:
        """Take what is in the output pipe now, and no more: a flood must not keep the loop here."""
        waiting = _readable(kernel.output)
        kernel.output_open = waiting > 0 or not hung_up
        while waiting > 0:
            try:
                data = os.read(kernel.output, min(waiting, m.OUTPUT_CHUNK))
            except OSError:
                return
            waiting -= len(data)
            kept = data[: self._room]
            self._room -= len(kept)
            self._dropped += len(data) - len(kept)
            if kept:
                self._send(m.Output(cell=self._cell, payload=kept))

    def _bury(self, kernel: spawn.KernelProcess) -> None:
        """Report a kernel that ended, with all it left in its pipes, and start the next."""
        spawn.kill_everything(kernel)
        while kernel.out_open and _readable(kernel.out) > 0:
            self._relay(kernel)
        self._drain(kernel)
        kernel.close()
        cause, code = self._cause(kernel)
        down = m.KernelDown(
            gen=kernel.gen, cell=self._cell, cause=cause, code=code, expired=self._expired, dropped=self._dropped
        )
        self._send(down)
        had_cell = self._cell > 0
        self._kernel = None
        self._no_cell()
        self._failures = 0 if had_cell else self._failures + 1
        delay = min(_RESPAWN_MAX, _RESPAWN_FIRST * 2**self._failures) if self._failures > 1 else 0.0
        self._respawn_at = time.monotonic() + delay
        if not delay and self._queued < QUEUE_MAX:
            self._spawn()

    def _cause(self, kernel: spawn.KernelProcess) -> tuple[str, int]:
        status = kernel.status or 0
        exceeded, self._exceeded = self._exceeded, None
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if self._overdue and number == signal.SIGKILL:
            return "unresponsive", number
        if number == signal.SIGKILL and (exceeded == "memory" or linux.oom_kills() > kernel.oom_kills):
            return "memory", number
        if number:
            return "signal", number
        return "exit", os.WEXITSTATUS(status)


def _readable(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def _take_channel() -> tuple[int, int]:
    """Move descriptors 0 and 1 where no program stumbles over them, and put the null device in their place."""
    lowest = min(_PRIVATE_FDS, linux.nofile() // 2)
    stdin = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, lowest)
    stdout = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, lowest)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0, inheritable=False)
    os.dup2(null, 1, inheritable=False)
    os.close(null)
    os.set_blocking(stdin, False)
    os.set_blocking(stdout, False)
    return stdin, stdout


def _default_signals() -> int:
    """Reset every handler, so that as PID 1 no signal from inside has an effect; returns a descriptor that a child's end wakes."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _confine(arguments: list[str]) -> Watch | None:
    """Do what the runtime does not: ``--confine BYTES PROCESSES`` is given where the container's kernel is not the host's."""
    if arguments[:1] != ["--confine"]:
        return None
    from rlm_sandbox.guest import confine  # noqa: PLC0415 - most containers do without

    confine.load()
    return confine.Watch(int(arguments[1]), int(arguments[2]))


def main() -> NoReturn:
    """Run the agent on descriptors 0 and 1; never returns."""
    linux.set_dumpable(False)
    watch = _confine(sys.argv[1:])
    stdin, stdout = _take_channel()
    wakeup = _default_signals()
    linux.adopt_orphans()
    Agent(stdin, stdout, wakeup, watch).run()


if __name__ == "__main__":
    main()
