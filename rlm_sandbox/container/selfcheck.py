"""Is every control of the profile in force? Asked of the guest, before any untrusted code, and believed only when it says no.

A guest's report cannot prove anything against a hostile image. It proves that *this* image, whose agent we made, on *this* engine with
its kernel, runtime and configuration, is confined as the profile says: an engine that ignores a limit, a kernel without
seccomp, a mount that somebody's daemon adds to every container. Each check names its control, what was expected and what was seen.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox import __version__
from rlm_sandbox.errors import ControlMissing, ImageError
from rlm_sandbox.wire import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.container.input_sample import InputSample
    from rlm_sandbox.container.profile import RunProfile
    from rlm_sandbox.wire.messages import Report

CPU_SLACK = 10
"""Thousandths of a CPU: a quota is a whole number of microseconds per period."""


@dataclass(frozen=True)
class Expectations:
    """What a kind of runtime can show from inside. What it cannot show is enforced outside the guest's kernel."""

    seccomp: bool = True
    no_new_privs: bool = True
    cgroup: bool = True
    mounts: bool = True
    input_identity: bool = True
    ambient: bool = True


NATIVE = Expectations()
"""runc, crun and whatever else runs on the host's kernel."""

GVISOR = Expectations(cgroup=False, mounts=False, input_identity=False, ambient=False)
"""runsc answers system calls by itself: it does not apply the profile inside, so the agent loads the filter, which is checked as any other;
it shows its own cgroups and mounts, and files by other inodes. Capabilities, user, network and environment are still checked."""

VIRTUAL_MACHINE = Expectations(input_identity=False, cgroup=False)
"""Kata runs a Linux of its own: seccomp and mounts are real, inodes come through a shared file system, limits size the machine."""

RUNTIMES = {"runsc": GVISOR, "kata": VIRTUAL_MACHINE}


def expectations(runtime: str | None) -> Expectations:
    """Return what to expect of a runtime, by the beginning of its name (``runsc-kvm``, ``kata-qemu``); unknown ones are native."""
    name = (runtime or "").removeprefix("io.containerd.").lower()
    for prefix, expected in RUNTIMES.items():
        if name.startswith(prefix):
            return expected
    return NATIVE


def verify(
    report: Report, profile: RunProfile, admitted: Admitted, *, local: bool = True, sample: InputSample | None = None
) -> None:
    """Return if everything is in force. ``sample`` is what the guest was asked to hash of the input.

    Raises:
        ControlMissing: it names every control that is not, and the fix of the first.
        ImageError: the guest in the image is not the one that this version needs.
    """
    if report.protocol != PROTOCOL_VERSION or report.guest_version != __version__:
        raise ImageError(
            f"the image holds guest {report.guest_version!r} (protocol {report.protocol}), "
            f"this is {__version__} (protocol {PROTOCOL_VERSION})",
            hint="run: rlm-sandbox image build",
        )
    missing = list(findings(report, profile, admitted, local=local, sample=sample))
    if missing:
        names = "; ".join(f"{name} ({what})" for name, what, _ in missing)
        raise ControlMissing(f"not in force in the container: {names}", hint=missing[0][2])


def remarks(report: Report, profile: RunProfile) -> list[str]:
    """Return what is in force in another way than the engine's, for the user to know."""
    if profile.confined_inside and not 0 < report.memory_max <= profile.engine_memory:
        why = (
            f"the engine's limits do not reach into {profile.runtime} (registered with --ignore-cgroups, or no cgroups)"
        )
        return [f"{why}: the guest watches memory and processes by itself, CPU is not limited"]
    return []


def findings(
    report: Report, profile: RunProfile, admitted: Admitted, *, local: bool = True, sample: InputSample | None = None
) -> Iterator[tuple[str, str, str]]:
    """Yield ``(control, what was seen, fix)`` for each control that is not in force."""
    expected = expectations(profile.runtime)
    yield from _privileges(report, profile, expected)
    yield from _limits(report, profile, expected)
    yield from _surroundings(report, profile, admitted, expected)
    exact = has_inodes(profile, local=local) and report.kernel_release == platform.release()
    yield from _input(report, admitted, sample, exact=exact, local=local)


def _privileges(report: Report, profile: RunProfile, expected: Expectations) -> Iterator[tuple[str, str, str]]:
    masks = {
        "effective": report.cap_eff,
        "permitted": report.cap_prm,
        "bounding": report.cap_bnd,
        "inheritable": report.cap_inh,
        "ambient": report.cap_amb,
    }
    if not expected.ambient and not report.cap_amb:
        del masks[
            "ambient"
        ]  # not shown there; and no capability can be ambient that is neither permitted nor inheritable
    held = [f"{name} {mask}" for name, mask in masks.items() if mask.strip("0") or not mask]
    if held:
        yield (
            "capabilities",
            ", ".join(held)[:200],
            "the engine did not drop all capabilities; is it a supported engine?",
        )
    if (report.uid, report.gid) != (profile.uid, profile.gid) or set(report.groups) - {profile.gid}:
        seen = f"uid {report.uid}, gid {report.gid}, groups {report.groups[:8]}"
        yield "user", seen, "the engine did not switch the user"
    if expected.no_new_privs and report.no_new_privs != 1:
        yield "no-new-privileges", str(report.no_new_privs), "the engine ignores the security option no-new-privileges"
    if expected.seccomp and report.seccomp != 2:  # noqa: PLR2004 - SECCOMP_MODE_FILTER
        yield "seccomp", f"mode {report.seccomp}", "use an engine and a kernel with seccomp (docker info lists it)"
    if expected.seccomp and not report.socket_denied:
        yield "seccomp profile", "socket() is allowed", "the engine applied another seccomp profile than ours"
    if report.dumpable not in {0, 2}:
        yield "agent protection", f"dumpable {report.dumpable}", "run: rlm-sandbox image build"


def _limits(report: Report, profile: RunProfile, expected: Expectations) -> Iterator[tuple[str, str, str]]:
    fix = "the engine ignores resource limits: rootless engines need cgroup v2 with cpu, memory and pids delegated"
    if expected.cgroup:
        if not 0 < report.memory_max <= profile.memory:
            yield "memory limit", _limit(report.memory_max), fix
        if report.swap_max > 0:
            yield "swap limit", _limit(report.swap_max), fix
        if not 0 < report.pids_max <= profile.pids:
            yield "process limit", _limit(report.pids_max), fix
        if not 0 < report.cpu_milli <= profile.cpus * 1000 + CPU_SLACK:
            yield "CPU limit", _limit(report.cpu_milli), fix
    if not 0 < report.nofile <= profile.nofile:
        yield "open-file limit", _limit(report.nofile), "the engine ignores ulimits"
    if report.core != 0:
        yield "core dumps", _limit(report.core), "the engine ignores ulimits"


def _limit(value: int) -> str:
    return "none" if value < 0 else str(value)


def _surroundings(
    report: Report, profile: RunProfile, admitted: Admitted, expected: Expectations
) -> Iterator[tuple[str, str, str]]:
    if not report.root_readonly:
        yield "read-only root", "writable", "the engine did not mount the root read-only"
    others = [name for name in report.interfaces if name != "lo"]
    if others:
        yield "no network", f"interfaces {others[:8]}", "something attaches containers to a network by itself"
    extra = sorted(set(report.env) - set(profile.environment))
    if extra:
        fix = "the engine adds variables to every container (proxies in ~/.docker/config.json or daemon.json?)"
        yield "environment", f"unexpected {', '.join(extra)[:200]}", fix
    if expected.mounts:
        bad = [line for line in report.mounts if not _mount_allowed(line, admitted, profile)]
        if bad:
            where = ", ".join(line.partition(" ")[0] for line in bad)[:200]
            fix = f"the engine or its runtime mounts {where} in every container: take that out of its configuration"
            yield "mounts", "; ".join(line[:100] for line in bad)[:600], fix


SYSTEM_MOUNTS = {
    "/proc": {"proc"},
    "/dev": {"tmpfs"},
    "/dev/pts": {"devpts"},
    "/dev/mqueue": {"mqueue"},
    "/dev/console": {"devpts"},
    "/sys": {"sysfs"},
    "/sys/fs/cgroup": {"tmpfs", "cgroup2", "cgroup"},
}
"""Mounts that every engine makes, with their types. Those under /proc and /sys are masks over parts of them."""

DEVICES = {
    "/dev/null": "1:3",
    "/dev/zero": "1:5",
    "/dev/full": "1:7",
    "/dev/random": "1:8",
    "/dev/urandom": "1:9",
    "/dev/tty": "5:0",
}
"""Device nodes that a runtime bind-mounts from the host where it may not make them: in a user namespace (rootless engines, userns-remap). Without one
it makes them in the container's own /dev. Numbers are those of Linux's ``devices.txt``."""

DEVICE_FILE_SYSTEMS = {"devtmpfs", "tmpfs"}
"""The host's /dev, or that of a container in which the engine runs."""

WRITABLE = {"/tmp": "tmpfs", "/dev/shm": "tmpfs"}  # noqa: S108
WRITABLE_OPTIONS = {"noexec", "nosuid", "nodev"}
ENGINE_FILES = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}


_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def _option(flags: set[str], name: str) -> int:
    """Return the number that a tmpfs shows for ``size`` or ``nr_inodes``, 0 when it shows none: without a limit there is none to show."""
    for flag in flags:
        key, _, value = flag.partition("=")
        if key == name:
            digits = value.rstrip("kmg")
            return int(digits) * _SIZES.get(value[len(digits) :], 0) if digits.isdecimal() else 0
    return 0


def _bounded(target: str, flags: set[str], profile: RunProfile) -> bool:
    size, files = (profile.tmpfs, profile.tmpfs_inodes) if target == "/tmp" else (profile.shm, profile.shm_inodes)  # noqa: S108
    return 0 < _option(flags, "size") <= size + PAGE and 0 < _option(flags, "nr_inodes") <= files


PAGE = 64 * 1024
"""A tmpfs rounds its size up to whole pages, of at most 64 KiB."""


def _mount_allowed(line: str, admitted: Admitted, profile: RunProfile) -> bool:
    target, kind, options = [*line.split(" "), "", ""][:3]
    flags = set(options.split(","))
    if target == "/" or target in ENGINE_FILES or target in {mount.target for mount in admitted.mounts}:
        return "ro" in flags
    if target in WRITABLE:
        return kind == WRITABLE[target] and flags >= WRITABLE_OPTIONS and _bounded(target, flags, profile)
    if target in DEVICES:
        return kind in DEVICE_FILE_SYSTEMS and f"rdev={DEVICES[target]}" in flags
    if target in SYSTEM_MOUNTS:
        masked = target == "/dev/pts" and kind == "tmpfs" and "ro" in flags
        return masked or kind in SYSTEM_MOUNTS[target]
    masks = {"proc", "sysfs", "tmpfs", "cgroup"}
    masked = kind in masks or (kind == "devtmpfs" and f"rdev={DEVICES['/dev/null']}" in flags)
    return masked and target.startswith(("/proc/", "/sys/"))


def has_inodes(profile: RunProfile, *, local: bool) -> bool:
    """Tell whether device and inode, as the guest sees them, can be compared with those of a file here."""
    return local and expectations(profile.runtime).input_identity


def _input(
    report: Report, admitted: Admitted, sample: InputSample | None, *, exact: bool, local: bool
) -> Iterator[tuple[str, str, str]]:
    """Compare the mounted input with the admitted descriptor: by inode, behind another kernel by a sample of its bytes, else by its size."""
    fix = "its path was replaced while the session started: try again, or --snapshot"
    if not local:
        fix = "the engine runs on another machine and looks there: copy the input to the same path, or use an engine on this one"
    size, wanted = admitted.identity.size, (admitted.identity.dev, admitted.identity.ino)
    seen = (report.input_dev, report.input_ino)
    if report.input_ino < 0:
        yield "input identity", "the guest sees no input", fix
    elif exact:
        if seen != wanted:
            yield "input identity", f"device and inode {seen}, admitted {wanted}", fix
    elif admitted.kind == "file" and (report.input_size < size if sample else report.input_size != size):
        yield "input identity", f"{report.input_size} bytes, admitted {size}", fix
    elif sample is not None and report.input_sample != sample.digest:
        yield "input identity", "its bytes are others than those of the file here", fix
