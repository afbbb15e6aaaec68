"""Starting and ending processes: the kernel of each generation, and whatever its cells left behind.

A kernel is forked from the agent and not executed anew: the agent is small, single-threaded and holds no secret, its modules are
loaded, and a replacement is there in a millisecond. The child keeps seven descriptors (null, output twice, and four of
its own at high numbers, out of the way of programs that count descriptors) and becomes dumpable again, which the agent is not.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import time
from contextlib import suppress
from typing import Final

from rlm_sandbox.guest import linux

PIPE: Final = 256 * 1024
"""Bytes asked for each of the channel's pipes: fewer wake-ups per megabyte. 64 KiB remain where that is refused."""

AGENT_FDS: Final = 256
"""Every descriptor of the agent is below this."""

_KERNEL_FDS: Final = 1000
_CLEANUP_ROUNDS: Final = 50
_PAUSE: Final = 0.001
"""Seconds between two rounds of killing: a killed process needs a moment to be gone."""

_SET_PIPE_SIZE: Final = 1031


class KernelProcess:
    """One generation: its process and the agent's ends of its pipes."""

    def __init__(self, payload: bytes, gen: int) -> None:
        self.gen = gen
        self.oom_kills = linux.oom_kills()
        self.status: int | None = None
        self.backlog = bytearray()
        self.out_open = True
        self.output_open = True
        stdin_r, self.stdin = _pipe()
        self.out, out_w = _pipe()
        self.output, output_w = os.pipe()
        note_r, self.note = os.pipe()
        ours = (self.stdin, self.out, self.output, self.note)
        theirs = (stdin_r, out_w, output_w, note_r)
        os.set_blocking(note_r, False)
        for fd in ours:
            os.set_blocking(fd, False)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_kernel(payload, theirs)
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for fd in theirs:
                os.close(fd)

    def interrupt(self, cell: int) -> None:
        """Send the kernel SIGINT, after noting for which cell."""
        with suppress(OSError):
            os.write(self.note, cell.to_bytes(8, "big"))
        _kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """End the kernel; what it started goes when its end is noticed."""
        _kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self.stdin, self.out, self.output, self.note):
            os.close(fd)


def preload() -> None:
    """Load what a kernel needs, once, before the first is forked."""
    from rlm_sandbox.guest import kernel  # noqa: F401, PLC0415 - here for its side effect

    gc.collect()
    gc.freeze()


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    with suppress(OSError):
        fcntl.fcntl(ends[0], _SET_PIPE_SIZE, PIPE)
    return ends


def _become_kernel(payload: bytes, fds: tuple[int, int, int, int]) -> None:
    """Run in the child; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as any Python has it: a file that grows too large is an OSError
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.setsid()
        linux.set_dumpable(True)
        linux.die_with_parent()
        linux.volunteer_for_oom()
        channel = _arrange(fds)
        from rlm_sandbox.guest import kernel  # noqa: PLC0415 - loaded by the agent while the host reads its report

        kernel.main(payload, *channel)
        code = 0
    except BaseException:  # noqa: BLE001 - the top of a process: nothing may run the agent's code on
        import traceback  # noqa: PLC0415 - only here

        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def _arrange(fds: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    stdin_r, out_w, output_w, note_r = fds
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    lowest = min(_KERNEL_FDS, linux.nofile() - 8)
    channel = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest) for fd in (stdin_r, out_w, note_r, output_w)]
    os.dup2(null, 0)
    os.dup2(output_w, 1)
    os.dup2(output_w, 2)
    os.closerange(3, min(AGENT_FDS, lowest))
    return channel[0], channel[1], channel[2], channel[3]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


def reap(kernel: KernelProcess | None) -> int:
    """Take the status of every child that ended; the kernel's own is kept in ``kernel.status``. Returns how many others."""
    others = 0
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return others
        if pid == 0:
            return others
        if kernel is not None and pid == kernel.pid:
            kernel.status = status
        else:
            others += 1


def kill_everything(kernel: KernelProcess | None) -> None:
    """End every process but this one and reap it. As PID 1 one call reaches all; elsewhere descendants are looked up."""
    for round_ in range(_CLEANUP_ROUNDS):
        if os.getpid() == 1:
            _kill(-1, signal.SIGKILL)
        for pid in linux.below(os.getpid(), linux.parents()):
            _kill(pid, signal.SIGKILL)
        if kernel is not None and kernel.status is None:
            _kill(kernel.pid, signal.SIGKILL)
        reap(kernel)
        if not linux.below(os.getpid(), linux.parents()) and (kernel is None or kernel.status is not None):
            return
        time.sleep(_PAUSE * (round_ + 1))


def kill_strays(kernel: KernelProcess) -> int:
    """End what no longer descends from the kernel, or everything below it when that fills half the process limit.

    Returns how many were ended. A stray that forks and exits can slip through a scan, but its death is then reaped here,
    and the scan is done again; from the second on everything is stopped first, and the kernel's own are let go on afterwards.
    """
    reap(kernel)
    if os.getpid() == 1 and linux.processes() == {1, kernel.pid}:
        return 0
    killed: set[int] = set()
    stopped = False
    for round_ in range(_CLEANUP_ROUNDS):
        if round_ > 0 and os.getpid() == 1:
            _kill(-1, signal.SIGSTOP)
            stopped = True
        found = _strays(kernel.pid)
        for pid in found:
            _kill(pid, signal.SIGKILL)
        killed.update(found)
        if found:
            time.sleep(_PAUSE)
        if not reap(kernel) and not found:
            break
    if stopped:
        _kill(-1, signal.SIGCONT)
    return len(killed)


def _strays(kernel: int) -> list[int]:
    parents = linux.parents()
    me = os.getpid()
    own = linux.below(kernel, parents)
    limit = linux.pids_max()
    if limit > 0 and len(own) > limit // 2:
        own = set()
    everyone = set(parents) if me == 1 else linux.below(me, parents)
    return [pid for pid in everyone if pid not in own and pid not in (me, kernel)]
