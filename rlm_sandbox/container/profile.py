"""Every hardening flag of a session's container in one frozen value, and its one translation into the engine's terms.

Nothing else in this package passes an option to the engine that changes what a container may do. What is asked for here is
verified from inside by :mod:`rlm_sandbox.container.selfcheck`, because an engine may ignore what it does not support.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rlm_sandbox.container import seccomp
from rlm_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIB = 1024 * 1024

UID = GID = 65534
"""Nobody: owns nothing on any common host, and exists without an /etc/passwd."""

UIDS = range(0x70000000, 0x7FFFFFFF)
"""Users that no distribution, container manager or directory service gives out; the engine takes none beyond 31 bits."""

MEMORY = 2048 * MIB
"""A pandas frame over a 64 MiB context (the largest real str) peaks near 1 GiB; twice that leaves room for a pool."""

MEMORY_MIN = 64 * MIB
"""Agent, kernel and a small cell need 40 MiB."""

CPUS_MIN = 0.05
"""Below this the interpreter takes longer to start than the host waits for its report."""

CPUS = 2.0
"""One for the cell, one for its helpers or the agent; more buys little, since sub-LLM calls dominate."""

PIDS = 640
"""Threads count. A cell that asks 500 questions from 500 threads must not fail for want of them; the rest is for OpenBLAS (one per CPU),
process pools and asyncio's default executor (up to 32). A fork bomb of this size shares the container's CPUs and leaves the host its own."""

TMPFS = 256 * MIB
"""Scratch space is memory; an eighth of the default limit."""

TMPFS_INODES = 16 * 1024
"""An inode costs about 1 KiB of kernel memory: 16 MiB at most."""

SHM = 64 * MIB
"""Docker's own default; semaphores take a page each, shared arrays the rest."""

SCRATCH_MIN = MIB
"""Less is no space to work in; and an engine takes a size of 0 for no limit."""

SHM_INODES = 1024
"""One per semaphore or shared block."""

NOFILE = 1024
"""The customary soft limit, and what select() can take."""

THREADS = 2
"""Threads of a numeric library: the CPU limit, since libraries count the host's CPUs and would start 64."""

ENV_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "POLARS_MAX_THREADS")

MASKED_PATHS = (
    "/dev/pts",
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""What current engines hide, listed so that older ones hide it too; and the pseudo-terminals, of which all containers of a host share some
three thousand: a session that opened them all would keep every other container from having one."""

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


GVISOR_MEMORY = 256 * MIB
"""gVisor's kernel and file server take 60 MiB; the rest is room for the guest's own watch to strike before the engine ends them all."""

GVISOR_PIDS = 384
"""gVisor's own threads, and what a fork bomb makes between two looks of the guest's watch."""


@dataclass(frozen=True)
class Mount:
    """A read-only bind mount; ``source`` is a path on the engine's host."""

    source: str
    target: str

    def to_json(self) -> dict[str, Any]:
        """Return the engine's shape. Not recursive: a mount that appears below the source later stays out."""
        return {
            "Type": "bind",
            "Source": self.source,
            "Target": self.target,
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
        }


def own_uid(*names: str) -> int:
    """Return the user of what ``names`` name, always the same one for the same names.

    The kernel counts pages in pipes, watches of epoll, queued signals and descriptors in flight for each user, across containers: sessions
    that shared one could take them from each other.
    """
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).digest()
    return UIDS[int.from_bytes(digest[:8], "big") % len(UIDS)]


def default_cpus(host_cpus: int | None = None) -> float:
    """Return the CPU limit for a host: two, or what there is, since the engine refuses more."""
    return min(CPUS, float(host_cpus or os.cpu_count() or 1))


@dataclass(frozen=True)
class RunProfile:
    """What a session's container may do. Sizes in bytes; ``cpus`` in CPUs; ``runtime`` None is the engine's default.

    ``labels`` are added to every container of the profile.
    """

    memory: int = MEMORY
    cpus: float = field(default_factory=default_cpus)
    pids: int = PIDS
    tmpfs: int = TMPFS
    tmpfs_inodes: int = TMPFS_INODES
    shm: int = SHM
    shm_inodes: int = SHM_INODES
    nofile: int = NOFILE
    runtime: str | None = None
    uid: int = UID
    gid: int = GID
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def default(cls) -> RunProfile:
        """Return the profile with every default."""
        return cls()

    def with_limits(
        self,
        *,
        memory: int | None = None,
        cpus: float | None = None,
        runtime: str | None = None,
        pids: int | None = None,
        tmpfs: int | None = None,
        tmpfs_inodes: int | None = None,
        shm: int | None = None,
        nofile: int | None = None,
    ) -> RunProfile:
        """Return a copy with other limits; ``None`` keeps what is there. Raises :class:`UsageError` when one makes no sense."""
        if memory is not None and memory < MEMORY_MIN:
            raise UsageError(f"a memory limit of {memory} bytes is too small", hint=f"at least {MEMORY_MIN // MIB} MiB")
        if cpus is not None and cpus < CPUS_MIN:
            raise UsageError(f"a CPU limit of {cpus:g} is too small", hint=f"at least {CPUS_MIN:g}")
        whole = self.memory if memory is None else memory
        for name, size in (("tmpfs", tmpfs), ("shm", shm)):
            if size is not None and not SCRATCH_MIN <= size <= whole:
                raise UsageError(
                    f"--{name} {size} is not between {SCRATCH_MIN} bytes and the memory limit of {whole}",
                    hint="scratch space counts as memory: pass less, or more --memory",
                )
        given: dict[str, Any] = {
            "memory": memory, "cpus": cpus, "runtime": runtime, "pids": pids, "tmpfs": tmpfs, "tmpfs_inodes": tmpfs_inodes,
            "shm": shm, "nofile": nofile,
        }  # fmt: skip
        if tmpfs is None and memory is not None:
            given["tmpfs"] = min(self.tmpfs, memory // 8)
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def summary(self) -> dict[str, Any]:
        """Return the limits as plain values, for a journal."""
        return {
            "memory": self.memory,
            "cpus": self.cpus,
            "pids": self.pids,
            "tmpfs": self.tmpfs,
            "tmpfs_inodes": self.tmpfs_inodes,
            "shm": self.shm,
            "nofile": self.nofile,
            "runtime": self.runtime,
            "user": f"{self.uid}:{self.gid}",
            "seccomp_sha256": hashlib.sha256(seccomp.compact().encode()).hexdigest(),
        }

    @property
    def environment(self) -> dict[str, str]:
        """All of the container's environment; nothing of the host's is in it."""
        threads = str(max(1, min(THREADS, round(self.cpus))))
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",  # noqa: S108 - the container's own tmpfs
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            **dict.fromkeys(ENV_NAMES, threads),
        }

    @property
    def tmpfs_mounts(self) -> dict[str, str]:
        """Writable mounts and their options: the only places that can be written to."""
        common = "rw,noexec,nosuid,nodev,mode=1777"
        return {
            "/tmp": f"{common},size={self.tmpfs},nr_inodes={self.tmpfs_inodes}",  # noqa: S108
            "/dev/shm": f"{common},size={self.shm},nr_inodes={self.shm_inodes}",  # noqa: S108
        }

    @property
    def engine_memory(self) -> int:
        """Bytes that the engine grants: gVisor's own kernel needs some of them."""
        return self.memory + (GVISOR_MEMORY if self.confined_inside else 0)

    @property
    def engine_pids(self) -> int:
        """Tasks that the engine grants: gVisor uses one of the host's for each of the guest's, and a few dozen by itself."""
        return self.pids + (GVISOR_PIDS if self.confined_inside else 0)

    def host_config(self, mounts: Sequence[Mount]) -> dict[str, Any]:
        """Return the engine's ``HostConfig``.

        ``IpcMode`` none still gives a private namespace; only its unlimited /dev/shm is left out, in favour of ours with an
        inode cap. ``OomScoreAdj`` makes a session die before the host's own processes do.
        """
        config: dict[str, Any] = {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp.compact()}"],
            "Memory": self.engine_memory,
            "MemorySwap": self.engine_memory,
            "MemorySwappiness": None,
            "OomKillDisable": False,
            "OomScoreAdj": 500,
            "NanoCpus": int(self.cpus * 1e9),
            "PidsLimit": self.engine_pids,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": self.nofile, "Hard": self.nofile},
                {"Name": "fsize", "Soft": self.tmpfs, "Hard": self.tmpfs},
                {"Name": "msgqueue", "Soft": 0, "Hard": 0},
                {"Name": "memlock", "Soft": 65536, "Hard": 65536},
            ],
            "Tmpfs": self.tmpfs_mounts,
            "Mounts": [mount.to_json() for mount in mounts],
            "Binds": [],
            "IpcMode": "none",
            "CgroupnsMode": "private",
            "PidMode": "",
            "UTSMode": "",
            "UsernsMode": "",
            "LogConfig": {"Type": "none", "Config": {}},
            "AutoRemove": True,
            "RestartPolicy": {"Name": "no"},
            "Init": False,
            "MaskedPaths": list(MASKED_PATHS),
            "ReadonlyPaths": list(READONLY_PATHS),
            "Dns": ["127.0.0.1"],
            "DnsSearch": ["."],
        }
        if self.runtime is not None:
            config["Runtime"] = self.runtime
        return config

    @property
    def confined_inside(self) -> bool:
        """Whether the guest loads the allow-list and watches its limits by itself.

        gVisor answers system calls in a kernel of its own, which does not apply the engine's profile and, where it runs without cgroups, none
        of the engine's limits.
        """
        return (self.runtime or "").lower().startswith("runsc")

    def to_config(self, image: str, mounts: Sequence[Mount], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the body of the engine's container-create call: no terminal, one stdin that ends with its writer.

        An environment entry without ``=`` removes the variable that the engine would add by itself.
        """
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        inside = {"Cmd": ["--confine", str(self.memory), str(self.pids)]} if self.confined_inside else {}
        return {
            **inside,
            "Image": image,
            "User": f"{self.uid}:{self.gid}",
            "WorkingDir": "/tmp",  # noqa: S108
            "Hostname": "sandbox",
            "Env": [*environment, "HOSTNAME"],
            "Labels": {**self.labels, **(labels or {})},
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": False,
            "NetworkDisabled": True,
            "StopSignal": "SIGKILL",
            "StopTimeout": 1,
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": self.host_config(mounts),
        }
