"""The system calls that a session may make: an allow-list in groups, each with the reason it is there.

A call that no group names fails with EPERM, so a new kernel's new calls are closed without anybody noticing them. Three
rules shape the groups. Nothing here can create a socket that reaches beyond the process tree: ``socket`` is absent, and
``socketpair`` gives connected streams only, because a datagram pair could still be pointed at a socket file by ``connect``
or ``sendto``. Nothing here can execute memory that was never a file of the image: no ``memfd_create``, no ``execveat``,
and every writable mount is ``noexec``. And a comparison is always "equals", never "differs": the kernel truncates many
arguments to 32 bits while the filter sees 64, so a deny-list of values can be passed by setting a high bit.

``seccomp.json`` is generated from this module (``python -m rlm_sandbox.container.seccomp``) and checked in for review.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ENOSYS = 38

CLONE_NEW = 0x7E020000
"""All ``CLONE_NEW*`` bits that ``clone`` takes: mount, cgroup, uts, ipc, user, pid, net."""

AF_UNIX = 1
SOCK_STREAM = 1
SOCK_TYPE_MASK = 0xF
"""The bits of a socket type that name the type; the rest are CLOEXEC and NONBLOCK, others the kernel refuses."""

PERSONALITY_QUERY = 0xFFFFFFFF

IOCTLS = {
    "TCGETS": 0x5401,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
}
"""What CPython asks of descriptors: is it a terminal, how wide, how much to read, blocking, inheritable."""


@dataclass(frozen=True)
class Arg:
    """One condition on an argument: ``(value_of[index] & mask) == value``; without ``mask`` all 64 bits count."""

    index: int
    value: int
    mask: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the shape that the engine reads; for a masked comparison it wants the mask first."""
        if self.mask is None:
            return {"index": self.index, "value": self.value, "op": "SCMP_CMP_EQ"}
        return {"index": self.index, "value": self.mask, "valueTwo": self.value, "op": "SCMP_CMP_MASKED_EQ"}


@dataclass(frozen=True)
class Group:
    """Calls that are allowed for one reason, all under the same conditions (which must hold together)."""

    reason: str
    names: str
    args: tuple[Arg, ...] = ()
    errno: int | None = None
    """Not allowed, but refused with this instead of EPERM."""

    def to_json(self) -> dict[str, Any]:
        """Return the rule as the engine reads it."""
        rule: dict[str, Any] = {
            "names": sorted(self.names.split()),
            "action": "SCMP_ACT_ALLOW" if self.errno is None else "SCMP_ACT_ERRNO",
            "args": [arg.to_json() for arg in self.args],
            "comment": self.reason,
        }
        if self.errno is not None:
            rule["errnoRet"] = self.errno
        return rule


GROUPS: tuple[Group, ...] = (
    Group(
        "read and write descriptors that are already open",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range"
        " dup dup2 dup3 fcntl fsync fdatasync sendfile copy_file_range fadvise64 readahead flock",
    ),
    Group(
        "look at and change files where mounts and permissions allow it: the input and the tmpfs",
        "open openat openat2 creat access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs"
        " getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat"
        " unlink unlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown umask truncate"
        " ftruncate fallocate utime utimes utimensat futimesat",
    ),
    Group(
        "shutil.copy2 lists and reads extended attributes; setting them is not needed",
        "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr",
    ),
    Group(
        "memory of the own process",
        "mmap munmap mprotect mremap madvise brk msync mincore mlock mlock2 munlock membarrier get_mempolicy",
    ),
    Group(
        "threads and locks",
        "futex futex_waitv set_robust_list get_robust_list set_tid_address rseq arch_prctl gettid sched_yield getcpu"
        " sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max"
        " sched_get_priority_min sched_rr_get_interval sched_getattr",
    ),
    Group(
        "processes of the own tree: subprocess and multiprocessing start the interpreter again",
        "execve fork vfork exit exit_group wait4 waitid getpid getppid getpgid getpgrp setpgid getsid setsid kill tkill"
        " tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal prctl",
    ),
    Group(
        "threads and child processes, but no new namespace",
        "clone",
        (Arg(0, 0, CLONE_NEW),),
    ),
    Group(
        "its flags lie in memory where a filter cannot look; ENOSYS makes the C library use clone",
        "clone3",
        errno=ENOSYS,
    ),
    Group(
        "limits of the own process; another's, such as the agent's, could be lowered by a pid other than 0",
        "prlimit64",
        (Arg(0, 0),),
    ),
    Group(
        "identity and usage, as seen by the process itself",
        "getuid geteuid getgid getegid getgroups getresuid getresgid getrlimit setrlimit getrusage getpriority"
        " capget sysinfo uname times getrandom",
    ),
    Group(
        "signals",
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause"
        " restart_syscall",
    ),
    Group(
        "clocks and timers",
        "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm getitimer setitimer timer_create"
        " timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime",
    ),
    Group(
        "waiting for descriptors: asyncio, selectors, subprocess",
        "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd"
        " eventfd2 pipe pipe2",
    ),
    Group(
        "asyncio wakes itself, and multiprocessing talks, through a connected pair of streams",
        "socketpair",
        (Arg(0, AF_UNIX), Arg(1, SOCK_STREAM, SOCK_TYPE_MASK)),
    ),
    Group(
        "use of such a pair; a message on a connected stream cannot name another address",
        "recvfrom recvmsg sendmsg shutdown getsockname getpeername getsockopt",
    ),
    Group(
        "send on such a pair, without an address",
        "sendto",
        (Arg(4, 0),),
    ),
    *(Group(f"CPython asks {name} of descriptors", "ioctl", (Arg(1, value),)) for name, value in IOCTLS.items()),
    Group(
        "ask for the execution domain; it cannot be changed, so address randomisation stays on",
        "personality",
        (Arg(0, PERSONALITY_QUERY),),
    ),
)


def profile() -> dict[str, Any]:
    """Return the profile in the engine's JSON shape.

    ``archMap`` names no sub-architectures: 32-bit and x32 calls, which have other numbers, end the process. The default
    errno is left to its default (EPERM), because older engines do not know the field.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [group.to_json() for group in GROUPS],
    }


@lru_cache(maxsize=1)
def compact() -> str:
    """Return the profile as the engine's ``seccomp=`` option takes it: inline JSON, without the comments."""
    data = profile()
    for rule in data["syscalls"]:
        del rule["comment"]
    return json.dumps(data, separators=(",", ":"))


def allowed_names() -> frozenset[str]:
    """Names that are allowed in at least some form."""
    return frozenset(name for group in GROUPS if group.errno is None for name in group.names.split())


JSON_PATH = Path(__file__).with_name("seccomp.json")


def render() -> str:
    """Return the text of ``seccomp.json``."""
    return json.dumps(profile(), indent=1) + "\n"


if __name__ == "__main__":
    JSON_PATH.write_text(render(), encoding="utf-8")
