"""Counting and searching on all cores, by plain ``fork``.

Threads do not help (bytes methods hold the interpreter lock) and ``multiprocessing`` would import the user's cells again
or pickle what they made. A forked child sees the same open input, runs one function over one range of numbers, writes
the resulting integers to a pipe and leaves by ``os._exit``: nothing of the session runs in it. If a fork fails (a pids
limit, no descriptor left) the parent does that share itself.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from array import array
from typing import TYPE_CHECKING

from rlm_sandbox.guest.errors import InputChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.guest.source import Source

# Bytes from which forking (about 5 ms for a large kernel process) costs less than it saves at 2-6 GB/s.
WORTH = 64 * 1024 * 1024
# More processes than this only fight for memory bandwidth, and the container's pids limit is for the cells.
MOST = 8
_DONE = b"done"
_READ = 1024 * 1024

Job = "Callable[[int, int], array[int]]"


def cores() -> int:
    """Return how many cores this process may use: the affinity mask, cut by the container's CPU quota."""
    count = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, min(count, MOST, round(quota) if quota else count))


def _quota() -> float | None:
    for paths in (
        ("/sys/fs/cgroup/cpu.max",),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        words: list[str] = []
        try:
            for path in paths:
                with open(path, encoding="ascii") as file:  # noqa: PTH123 - the guest uses plain paths
                    words += file.read().split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():  # noqa: PLR2004 - quota and period
            return int(words[0]) / int(words[1])
    return None


def gather(source: Source, job: Callable[[int, int], array[int]], low: int, high: int) -> array[int]:
    """Return ``job(low, high)``, computed in contiguous shares and joined in order."""
    shares = min(cores(), high - low)
    if shares <= 1:
        return job(low, high)
    bounds = [low + (high - low) * k // shares for k in range(shares + 1)]
    children: list[tuple[int, int] | None] = []
    try:
        for k in range(1, shares):
            children.append(_start(source, job, bounds[k], bounds[k + 1]))  # noqa: PERF401 - what was begun must be known
        parts = [job(bounds[0], bounds[1])]
        for k, child in enumerate(children, start=1):
            part = _collect(child) if child else None
            parts.append(job(bounds[k], bounds[k + 1]) if part is None else part)
    finally:
        for child in children:
            if child:
                _end(child)
    result = parts[0]
    for part in parts[1:]:
        result.extend(part)
    return result


def _start(source: Source, job: Callable[[int, int], array[int]], low: int, high: int) -> tuple[int, int] | None:
    """Return ``(pid, pipe)`` of a child at work, or None if there can be none."""
    try:
        reader, writer = os.pipe()
    except OSError:
        return None
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return None
    if pid == 0:
        _child(source, job, low, high, writer)
    os.close(writer)
    return pid, reader


def _child(source: Source, job: Callable[[int, int], array[int]], low: int, high: int, writer: int) -> None:
    """Run the job and leave without running anything of the session: no handler, no finaliser, no buffer flush."""
    code = 1
    try:
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        source.after_fork()
        data = memoryview(job(low, high)).cast("B")
        while data:
            data = data[os.write(writer, data) :]
        os.write(writer, _DONE)
        code = 0
    except (OSError, InputChanged, MemoryError):
        code = 1  # the parent does this share itself, and meets the error where it can be told
    finally:
        os._exit(code)


def _collect(child: tuple[int, int]) -> array[int] | None:
    """Return what a child wrote, or None if it did not come to its end."""
    data = bytearray()
    while part := os.read(child[1], _READ):
        data += part
    if not data.endswith(_DONE):
        return None
    del data[-len(_DONE) :]
    result = array("q")
    result.frombytes(data)
    return result


def _end(child: tuple[int, int]) -> None:
    pid, reader = child
    os.close(reader)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


if sys.platform != "linux":  # pragma: no cover - the guest is a Linux container

    def cores() -> int:
        """Return 1: no affinity mask here."""
        return 1
