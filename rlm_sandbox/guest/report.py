"""What the container looks like from inside, for the host to check before any untrusted code runs.

Everything is read, nothing assumed, and nothing raises: what cannot be known is -1 or "", and the host decides what that means.
"""

from __future__ import annotations

import os
import resource
import stat
import sys
from typing import TYPE_CHECKING, Any

from rlm_sandbox import __version__
from rlm_sandbox.guest import linux
from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLE_BYTES = 1024 * 1024
"""Bytes of the input that are read at once for its sample."""

INPUT = "/input"

_MOUNTS_BYTES = 40 * 1024
_ENV_BYTES = 12 * 1024
"""Of the two long lists of a report, whose header has 64 KiB in all. A container as we start it needs a tenth."""


def build(sample: Sequence[int] = ()) -> m.Report:
    """Return the report, with the digest of the ranges in ``sample``; fields as :class:`rlm_sandbox.wire.messages.Report` says."""
    status = _status()
    dev, ino, size = _input()
    return m.Report(
        protocol=PROTOCOL_VERSION,
        guest_version=_clip(__version__, 64),
        python=_clip(".".join(str(part) for part in sys.version_info[:3]), 64),
        uid=os.getuid(),
        gid=os.getgid(),
        groups=[group for group in os.getgroups() if 0 <= group <= 2**32][:64],
        cap_eff=_clip(status.get("CapEff", ""), 32),
        cap_prm=_clip(status.get("CapPrm", ""), 32),
        cap_bnd=_clip(status.get("CapBnd", ""), 32),
        cap_inh=_clip(status.get("CapInh", ""), 32),
        cap_amb=_clip(status.get("CapAmb", ""), 32),
        no_new_privs=_within(linux.number(status.get("NoNewPrivs") or str(linux.no_new_privs())), 1),
        seccomp=_within(linux.number(status.get("Seccomp", "")), 2),
        socket_denied=_socket_denied(),
        dumpable=_within(linux.dumpable(), 2),
        **_limits(),
        nofile=_rlimit(resource.RLIMIT_NOFILE),
        core=_rlimit(resource.RLIMIT_CORE),
        root_readonly=_root_readonly(),
        interfaces=_interfaces(),
        mounts=_mounts(),
        env=_fitting([_clip(name, 128) for name in sorted(os.environ)], 128, _ENV_BYTES, "the-list-was-cut"),
        kernel_release=_clip(os.uname().release, 128),
        input_dev=dev,
        input_ino=ino,
        input_size=size,
        input_sample=_sample(sample) if sample else "",
    )


def _clip(text: str, limit: int) -> str:
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def _fitting(items: list[str], count: int, room: int, mark: str) -> list[str]:
    """Return ``items``, or as many as fit and then ``mark``: what is left out must not look like what is not there."""
    kept: list[str] = []
    for item in items:
        room -= len(item.encode()) * 2 + 3  # quotes and a comma, and a backslash before every character at worst
        if room < 0 or len(kept) == count - 1:
            return [*kept, mark]
        kept.append(item)
    return kept


def _within(value: int, high: int) -> int:
    return value if -1 <= value <= high else -1


def _status() -> dict[str, str]:
    lines = (line.partition(":") for line in linux.read("/proc/self/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _first(*paths: str) -> str:
    for path in paths:
        if text := linux.read(f"{linux.CGROUP}/{path}").strip():
            return text
    return ""


def _limits() -> dict[str, int]:
    """Return the cgroup's limits. v1 counts memory and swap together; ``swap_max`` is swap alone, as in v2."""
    memory = _bytes(_first("memory.max", "memory/memory.limit_in_bytes"))
    if memory < 0:
        memory = (
            linux.memory_total()
        )  # all there is: a kernel of the container's own is given what the container may use
    swap = _bytes(_first("memory.swap.max"))
    both = _bytes(_first("memory/memory.memsw.limit_in_bytes"))
    if swap < 0 and both >= 0 and memory >= 0:
        swap = max(0, both - memory)
    return {
        "memory_max": memory,
        "swap_max": swap,
        "pids_max": _bytes(_first("pids.max", "pids/pids.max")),
        "cpu_milli": _cpu_milli(),
    }


def _bytes(text: str) -> int:
    value = linux.number(text)
    return value if 0 <= value <= m.ID_MAX else -1  # v1 writes "no limit" as a page-rounded 2**63


def _cpu_milli() -> int:
    quota, _, period = _first("cpu.max").partition(" ")
    if not quota:
        quota = _first("cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us")
        period = _first("cpu/cpu.cfs_period_us", "cpu,cpuacct/cpu.cfs_period_us")
    per, share = linux.number(period), linux.number(quota)
    return share * 1000 // per if share > 0 and per > 0 else -1


def _rlimit(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return hard if 0 <= hard <= m.ID_MAX else -1


def _root_readonly() -> bool:
    try:
        return bool(os.statvfs("/").f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _interfaces() -> list[str]:
    try:
        names = os.listdir("/sys/class/net")  # noqa: PTH208 - pathlib costs start-up time
    except OSError:
        names = []
    if not names:
        names = [line.partition(":")[0].strip() for line in linux.read("/proc/net/dev").splitlines()[2:]]
    return [_clip(name, 64) for name in sorted(names)][:64]


def _mounts() -> list[str]:
    """Return ``"target fstype options"``. The options are the mount's own, then the file system's, without repeats.

    Where a character device is mounted, ``rdev=MAJOR:MINOR`` comes first: the file system's type does not say which device it is.
    """
    found = []
    for line in linux.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        own, rest = before.split(), after.split()
        if len(own) > 5 and rest:  # noqa: PLR2004 - see proc_pid_mountinfo(5)
            found.append(_clip(f"{own[4]} {rest[0]} {_device(own[4])}{_options(own[5], rest[2:])}", 512))
    return _fitting(found, m.MOUNTS_MAX, _MOUNTS_BYTES, "/ unknown the-list-was-cut")


def _device(target: str) -> str:
    try:
        info = os.stat(target)  # noqa: PTH116 - pathlib costs start-up time
    except OSError:
        return ""
    return f"rdev={os.major(info.st_rdev)}:{os.minor(info.st_rdev)}," if stat.S_ISCHR(info.st_mode) else ""


def _options(own: str, of_file_system: list[str]) -> str:
    names = own.split(",")
    for option in of_file_system[-1].split(",") if of_file_system else ():
        if option not in ("rw", "ro") and option not in names:
            names.append(option)
    return ",".join(names)


def _socket_denied() -> bool:
    """Try to make a socket of three families. One that can be made means the filter is not in force."""
    try:
        import _socket  # noqa: PLC0415 - an image may come without it, and then there are no sockets
    except ImportError:
        return True
    for family in (_socket.AF_UNIX, _socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.socket(family, _socket.SOCK_STREAM, 0).close()
        except PermissionError:
            continue
        except OSError:
            if family != _socket.AF_INET6:
                return False
        else:
            return False
    return True


def _entry(of_several: str) -> str | None:
    """Return the path of the only entry of the input directory; where a tree and its index stand there, of the one asked for."""
    try:
        names = os.listdir(INPUT)  # noqa: PTH208
    except OSError:
        return None
    if len(names) == 1:
        return f"{INPUT}/{names[0]}"
    return f"{INPUT}/{of_several}" if of_several in names else None


def _sample(numbers: Sequence[int]) -> str:
    """Return the SHA-256 of ranges of the input file, or of the index of an input directory, "" where they cannot be read."""
    import hashlib  # noqa: PLC0415 - needed only where the host cannot tell the input by its inode

    target, digest = _entry("index.jsonl"), hashlib.sha256()
    try:
        fd = os.open(target or "", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        for at in range(0, len(numbers) - 1, 2):
            offset, end = numbers[at], numbers[at] + numbers[at + 1]
            while offset < end and (data := os.pread(fd, min(end - offset, _SAMPLE_BYTES), offset)):
                digest.update(data)
                offset += len(data)
    except (OSError, OverflowError):
        return ""
    finally:
        os.close(fd)
    return digest.hexdigest()


def _input() -> tuple[int, int, int]:
    """Return device, inode and size of the only entry of the input directory, or of the tree it holds; -1 if none."""
    target = _entry("tree")
    if target is None:
        return -1, -1, -1
    try:
        info: Any = os.stat(target, follow_symlinks=False)  # noqa: PTH116
    except OSError:
        return -1, -1, -1
    return info.st_dev, min(info.st_ino, 2**64), info.st_size
