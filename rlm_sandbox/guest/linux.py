"""The kernel interfaces that the agent uses and Python does not wrap. Nothing here raises: unknown is -1, 0 or empty."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import ctypes

    _libc: ctypes.CDLL | None = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):
    _libc = None

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_NO_NEW_PRIVS = 39
_SIGKILL = 9

CGROUP = "/sys/fs/cgroup"

_READ_MAX = 1024 * 1024


def _prctl(option: int, value: int = 0) -> int:
    if _libc is None:
        return -1
    result: int = _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return result


def set_dumpable(dumpable: bool) -> None:
    """Let processes of the same user look into this one, or not."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def dumpable() -> int:
    """Return 0 when no process of the same user can look into this one."""
    return _prctl(_PR_GET_DUMPABLE)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, as PID 1 is by birth."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def volunteer_for_oom() -> None:
    """Be the first that the out-of-memory killer takes."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib costs start-up time
            file.write("1000")
    except OSError:
        return


def nofile() -> int:
    """Return the soft limit of open descriptors, at most a million."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1_000_000 if soft < 0 else min(soft, 1_000_000)


def read(path: str) -> str:
    """Return the text of a small file of the kernel's, at most a megabyte of it, "" when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file object costs twice the rest; cells wait for this
    except OSError:
        return ""
    try:
        whole = bytearray()
        while len(whole) < _READ_MAX and (piece := os.read(fd, 16 * 1024)):
            whole += piece
        return whole.decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def number(text: str) -> int:
    """Return the number in ``text``; -1 for none or "max"."""
    try:
        return int(text)
    except ValueError:
        return -1


def oom_kills() -> int:
    """Return how often the out-of-memory killer struck in this cgroup (v2 or v1); 0 when unknown."""
    for path in (f"{CGROUP}/memory.events", f"{CGROUP}/memory/memory.oom_control"):
        for line in read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return max(0, number(value))
    return 0


def memory_used() -> int:
    """Return the bytes that everything in this kernel's view uses, 0 when unknown."""
    sizes = {line.partition(":")[0]: line.split() for line in read("/proc/meminfo").splitlines()}
    try:
        return max(0, number(sizes["MemTotal"][1]) - number(sizes["MemAvailable"][1])) * 1024
    except (KeyError, IndexError):
        return 0


def memory_total() -> int:
    """Return the bytes of memory that this kernel has, -1 when unknown."""
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return number(line.split()[1]) * 1024
    return -1


def no_new_privs() -> int:
    """Return 1 when no program can give this process more rights, -1 when unknown."""
    return _prctl(_PR_GET_NO_NEW_PRIVS)


def pids_max() -> int:
    """Return the cgroup's limit of processes, -1 for none."""
    for path in (f"{CGROUP}/pids.max", f"{CGROUP}/pids/pids.max"):
        if text := read(path).strip():
            return number(text)
    return -1


def processes() -> set[int]:
    """Return every process that can be seen, zombies too."""
    try:
        return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208
    except OSError:
        return set()


def parents() -> dict[int, int]:
    """Return the parent of every process that is not a zombie."""
    found: dict[int, int] = {}
    for pid in processes():
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) > 1 and fields[0] not in "ZX":
            found[pid] = int(fields[1])
    return found


def below(root: int, parent_of: dict[int, int]) -> set[int]:
    """Return all descendants of ``root``."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    result: set[int] = set()
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in result:
                result.add(pid)
                todo.append(pid)
    return result


MANY_DEAD = 32
"""A quarter of the default process limit. Fewer dead children wait for a cell that may still ask how they ended."""


def reap_the_many() -> None:
    """Take the status of this process's dead children when they are so many that they fill the process limit."""
    children = 0
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        for task in os.listdir("/proc/self/task"):  # noqa: PTH208
            children += len(read(f"/proc/self/task/{task}/children").split())
    except OSError:
        return
    if children < MANY_DEAD:
        return
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _memmem() -> Callable[[bytes, bytes, int], int] | None:
    """Return the C library's search as ``find(block, needle, start)``, or None where there is none."""
    function = getattr(_libc, "memmem", None)
    if function is None:
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    address_of = ctypes.cast

    def find(block: bytes, needle: bytes, start: int) -> int:
        """Return the first place of ``needle`` in ``block`` from ``start`` (not negative) on, or -1."""
        size = len(block)
        if start >= size:
            return -1
        base = address_of(ctypes.c_char_p(block), ctypes.c_void_p).value or 0
        found = function(base + start, size - start, needle, len(needle))
        return -1 if found is None else int(found) - base

    return find


memmem = _memmem()
