"""What can be said about an engine before anything runs on it: can it give what a session's profile asks for?

The proof is :mod:`rlm_sandbox.container.selfcheck`, inside a container. This is the explanation for a person whose engine fails it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlm_sandbox.container import image
from rlm_sandbox.container.failures import boundary
from rlm_sandbox.container.profile import MIB, RunProfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.container.engine import Engine

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of a report: what was looked at, how it is, and what to do (empty when nothing)."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def probe_engine(engine: Engine, profile: RunProfile | None = None) -> list[Finding]:
    """Look at a connected engine; blocks for two API calls. Raises :class:`EngineError` when it does not answer."""
    wanted = profile or RunProfile.default()
    with boundary("describe itself"):
        data: dict[str, Any] = engine.api.info()
    return [
        *_identity(engine, data),
        *_limits(data),
        *_isolation(engine, wanted),
        *_room(data, wanted),
        *_images(engine),
    ]


def _identity(engine: Engine, data: dict[str, Any]) -> Iterator[Finding]:
    info = engine.info(fresh=True)
    where = "this machine" if info.local else "another machine or a virtual one"
    yield Finding("engine", "ok", f"{info.version} (API {info.api}) at {info.host}, {info.name}, {where}")
    if info.os != "linux":
        yield Finding("platform", "fail", f"{info.os} containers", "switch the engine to Linux containers")
    elif info.arch not in {"x86_64", "aarch64"}:
        fix = "the seccomp profile names x86_64 and aarch64 only"
        yield Finding("platform", "fail", f"{info.os}/{info.arch}", fix)
    else:
        yield Finding("platform", "ok", f"{info.os}/{info.arch}, kernel {info.kernel}")
    if not info.local:
        fix = "inputs must lie where the engine can see them; a changed input is recognised by its size only"
        yield Finding("files", "warn", "the engine has another view of the disk", fix)
    if warnings := data.get("Warnings"):
        yield Finding("warnings", "warn", "; ".join(str(text) for text in warnings)[:300], "see: docker info")


LIMITS = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU",
}


def _limits(data: dict[str, Any]) -> Iterator[Finding]:
    version = str(data.get("CgroupVersion") or "1")
    missing = [name for key, name in LIMITS.items() if not data.get(key, False)]
    if missing:
        fix = "rootless: delegate cpu, memory and pids to your user (cgroup v2); else boot with swapaccount=1 for swap"
        yield Finding("limits", "fail", f"cgroup v{version} without: {', '.join(missing)}", fix)
    else:
        yield Finding("limits", "ok", f"cgroup v{version}: memory, swap, processes and CPU can be limited")


def _isolation(engine: Engine, profile: RunProfile) -> Iterator[Finding]:
    info = engine.info()
    if info.seccomp:
        yield Finding("seccomp", "ok", "supported; sessions bring their own allow-list")
    else:
        yield Finding(
            "seccomp", "fail", "not supported", "use an engine and kernel with seccomp: nothing starts without"
        )
    extra = [name for name in ("apparmor", "selinux") if any(f"name={name}" in item for item in info.security_options)]
    if extra:
        yield Finding("mandatory access control", "ok", ", ".join(extra))
    user = "rootless" if info.rootless else "user namespaces" if _userns(info.security_options) else "root"
    hint = "" if user != "root" else "a rootless engine or user namespaces would be a second wall"
    yield Finding("engine's user", "ok" if user != "root" else "warn", user, hint)
    strong = sorted(name for name in info.runtimes if name.startswith(("runsc", "kata")))
    chosen = profile.runtime or info.default_runtime
    if profile.runtime and profile.runtime not in info.runtimes:
        yield Finding(
            "runtime", "fail", f"{profile.runtime} is not registered", "see the runtime's own installation guide"
        )
    else:
        yield Finding("runtime", "ok", f"{chosen}" + (f"; stronger ones: {', '.join(strong)}" if strong else ""))


def _userns(options: tuple[str, ...]) -> bool:
    return any("name=userns" in item for item in options)


def _room(data: dict[str, Any], profile: RunProfile) -> Iterator[Finding]:
    memory, cpus = int(data.get("MemTotal") or 0), int(data.get("NCPU") or 0)
    text = (
        f"{memory // MIB} MiB memory, {cpus} CPUs; a session may take {profile.memory // MIB} MiB and {profile.cpus:g}"
    )
    if memory < profile.memory:
        yield Finding("capacity", "warn", text, "pass a smaller --memory")
    elif cpus < profile.cpus:
        yield Finding("capacity", "fail", text, "pass a smaller --cpus")
    else:
        yield Finding("capacity", "ok", text)


def _images(engine: Engine) -> Iterator[Finding]:
    for name in image.NAMES:
        info = image.current(engine, name)
        if info is None:
            yield Finding(
                f"image {name}",
                "warn",
                "not built yet for this version",
                f"{image.FIX} {name} (else the first start does it)",
            )
        else:
            yield Finding(f"image {name}", "ok", f"{info.ref} {info.id[:19]}")
