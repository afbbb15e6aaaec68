"""The kernel: runs untrusted cells one after another in one living ``__main__``.

The main thread runs cells and nothing else of weight, because it is where signals strike: a host's interrupt, or a handler
that a cell left behind, may raise between any two bytecodes there. So the state of a cell is kept in a :class:`Job` whose
steps can each be done again, and everything sent goes through the channel's writer thread, which no signal reaches.
An interrupt names its cell on a pipe of its own, so one that comes late or early never hits another cell.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import warnings
from _queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest import api, cells, config, determinism, linux, namespace, notes, variables
from rlm_sandbox.guest.channel import Channel
from rlm_sandbox.wire import messages as m

if TYPE_CHECKING:
    from types import FrameType

WARNING_MAX = 512
WARNINGS_BYTES_MAX = 12 * 1024
"""Of all warnings of a result as UTF-8; see ``variables.BYTES_MAX`` for how a header's 64 KiB are shared."""

_GUARDS = 8
"""Nested guards of the main loop. An unguarded instant is a microsecond wide; that many in a row do not happen."""

_STREAMS = (("stdout", 1), ("stderr", 2))


class Job:
    """One cell on its way: received, run, reported."""

    def __init__(self, cell: int, source: bytes) -> None:
        self.cell = cell
        self.source = source
        self.started = False
        self.final: tuple[str, str | None, str] | None = None
        self.status = "error"
        self.error = "the cell was ended by an exception that came from outside of it\n"
        self.variables: tuple[list[dict[str, Any]], int] = ([], 0)
        self.ended = False
        self.reported = False


class Kernel:
    """The process of one generation. ``names`` is the cells' namespace, ``given`` what was in it at the start."""

    def __init__(self, settings: config.Config, read_fd: int, write_fd: int, interrupt_fd: int, output_fd: int) -> None:
        self.config = settings
        self.pid = os.getpid()
        self.names: dict[str, Any] = {}
        self.given: dict[str, object] = {}
        self.channel = Channel(read_fd, write_fd, window=settings.window, on_cell=self._on_cell)
        self._interrupt_fd = interrupt_fd
        self._output_fd = output_fd
        self._job: Job | None = None
        self._armed = False
        self._interrupted_cell = 0
        self._taken_early = False
        self._strikes = 0
        self._wake: SimpleQueue[None] = SimpleQueue()

    def serve(self) -> None:
        """Build the namespace, say so, and run cells until the channel ends."""
        signal.signal(signal.SIGINT, self._on_sigint)
        api.connect(self)
        self.names = namespace.build(self.config).__dict__
        self.given = dict(self.names)
        self.channel.start()
        self.channel.do(lambda: self.channel.write(m.Ready()))
        self._forever(_GUARDS)

    def _forever(self, guards: int) -> None:
        """Step on, whatever a cell's signal handler raises here. What strikes one guard's handler is caught by the next."""
        while True:
            try:
                if guards:
                    self._forever(guards - 1)
                else:
                    self._step()
            except BaseException:  # noqa: BLE001 - see above
                self._strikes += 1

    def _step(self) -> None:
        if os.getpid() != self.pid:
            os._exit(1)
        job = self._job
        if job is None or job.reported:
            self._wake.get()
        elif not job.ended:
            self._run(job)
        else:
            self.channel.do(lambda: self._report(job))
            self._wake.get()

    def _on_cell(self, message: m.Cell) -> None:
        self._job = Job(message.cell, message.payload)
        self._wake.put(None)

    def _run(self, job: Job) -> None:
        if job.started:
            self._armed = False
            job.ended = True  # a signal handler of the cell raised outside of the cell; what is known is reported
            return
        job.started = True
        if self._strikes:
            self._strikes = 0
            notes.add("a signal handler set by a cell raised while no cell was running")
        self.channel.begin_cell()
        signal.signal(signal.SIGINT, self._on_sigint)
        self._restore_streams()
        linux.reap_the_many()
        try:
            self._taken_early = self._take_note()
            self._armed = True
            if self._interrupted_cell == job.cell:
                raise KeyboardInterrupt  # noqa: TRY301 - the interrupt came before the cell; it ends the same way
            job.status, job.error = cells.run(job.cell, job.source, self.names)
            job.variables = variables.listing(self.names, self.given)
            if self.config.input:
                namespace.note_changes()
            cells.flush()
        except KeyboardInterrupt:
            job.status, job.error = "interrupted", "KeyboardInterrupt\n"
        except BaseException as exc:  # noqa: BLE001 - what the cell left behind raised while its result was made
            job.status, job.error = "error", f"{variables.type_name(exc)}: raised after the cell's end\n"
        finally:
            self._armed = False
            if os.getpid() != self.pid:
                cells.leave_fork(job.status, job.error)
        job.ended = True

    def finish(self, kind: str, name: str | None, text: str) -> None:
        """Keep the final answer of the running cell; the first one counts."""
        job = self._job
        if os.getpid() == self.pid and job is not None and not job.ended and job.final is None:
            job.final = (kind, name, text)

    def _report(self, job: Job) -> None:
        """Send the final answer and the result. Writer thread only, and once, however often the main thread asks."""
        if job.reported:
            return
        if job.final is not None:
            self._send_final(job.cell, *job.final)
        job.final = None
        made, total = job.variables
        result = m.Result(
            cell=job.cell,
            status="error" if job.status == "interrupted" and self._interrupted_cell != job.cell else job.status,
            variables=made,
            variables_total=total,
            warnings=_clipped_warnings(),
            payload=b"" if job.status == "ok" else cells.clip_middle(job.error),
        )
        job.reported = True
        self.channel.write(result)

    def _send_final(self, cell: int, kind: str, name: str | None, text: str) -> None:
        raw = text.encode("utf-8", "replace")
        if name is not None:
            name = variables.clip(name, 256)
        pieces = range(0, max(1, len(raw)), m.FINAL_CHUNK)
        for at in pieces:
            last = at == pieces[-1]
            piece = raw[at : at + m.FINAL_CHUNK]
            self.channel.write(m.Final(cell=cell, kind=kind, name=name, length=len(text), last=last, payload=piece))

    def _on_sigint(self, _number: int, _frame: FrameType | None) -> None:
        """Raise in the running cell, unless the host meant another one. Without a note the cell signalled itself."""
        if os.getpid() != self.pid:
            raise KeyboardInterrupt
        noted = self._take_note()
        job = self._job
        if not self._armed or job is None or (noted and self._interrupted_cell != job.cell):
            return
        if not noted and self._taken_early:
            self._taken_early = False
            return
        raise KeyboardInterrupt

    def _take_note(self) -> bool:
        """Read for which cell the host's interrupt was meant; False when there was none."""
        try:
            noted = os.read(self._interrupt_fd, 4096)
        except OSError:
            return False
        self._interrupted_cell = int.from_bytes(noted[-8:], "big")
        return bool(noted)

    def _restore_streams(self) -> None:
        """Give a cell its streams back when an earlier one closed or replaced one with something closed, as ``exit()`` does with its input."""
        if getattr(sys.stdin, "closed", True):
            _reopen_input()
        for name, fd in _STREAMS:
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(self._output_fd, fd)
            if getattr(getattr(sys, name, None), "closed", True):
                _open_stream(name, fd)


def _reopen_input() -> None:
    """Make descriptor 0 empty input again, unless a cell has got the number for something of its own."""
    empty = os.open(os.devnull, os.O_RDONLY)
    if empty != 0:
        try:
            os.fstat(0)
        except OSError:
            os.dup2(empty, 0)
        os.close(empty)
    stream = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - for as long as the kernel lives
    for name in ("stdin", "__stdin__"):
        setattr(sys, name, stream)


def _open_stream(name: str, fd: int) -> None:
    stream = cells.open_stream(fd)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _clipped_warnings() -> list[str]:
    kept: list[str] = []
    room = WARNINGS_BYTES_MAX
    for note in notes.take()[: notes.KEPT]:
        text = variables.clip(str(note), WARNING_MAX)
        room -= len(text.encode()) + 8
        if room < 0:
            break
        kept.append(text)
    return kept


def main(payload: bytes, read_fd: int, write_fd: int, interrupt_fd: int, output_fd: int) -> None:
    """Run in the freshly forked process; never returns while the channel is open."""
    settings = config.parse(payload)
    determinism.apply(settings)
    for name, fd in _STREAMS:
        _open_stream(name, fd)
    if sys.version_info >= (3, 14):
        import multiprocessing  # noqa: PLC0415 - only where its default is not fork

        multiprocessing.set_start_method("fork")
    if sys.version_info >= (3, 12):  # the channel's two threads take no part in what a forked child does
        warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
    faulthandler.enable(file=2, all_threads=False)
    Kernel(settings, read_fd, write_fd, interrupt_fd, output_fd).serve()
