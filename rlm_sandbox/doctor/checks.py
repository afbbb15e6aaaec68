"""What a session needs of this host, checked one by one: what is wrong and how to fix it.

``fail`` means that sessions will not start, ``warn`` that they will, with something the user should know.
"""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlm_sandbox.container import image
from rlm_sandbox.container.engine import Engine
from rlm_sandbox.container.profile import MIB, RunProfile
from rlm_sandbox.errors import RLMError
from rlm_sandbox.session.provider_choice import choose
from rlm_sandbox.settings.model import load, load_policy, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rlm_sandbox.container.engine import EngineInfo

DISK_WARN = 2 * 2**30
"""Bytes free below which staging and images are likely to fail: twenty base images, or one modest input."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")

RUNC_FIXED = (
    ("CVE-2024-21626 (leaked descriptor, host file system access)", ((1, 1, 12), (1, 2, 0))),
    (
        "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 (mount races, container escape)",
        ((1, 2, 8), (1, 3, 3), (1, 4, 0)),
    ),
)
"""Advisories of runc, each with the first fixed release of every maintained line."""


@dataclass(frozen=True)
class Finding:
    """One check. ``fix`` is empty when there is nothing to do."""

    check: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def run(home: Path, environment: Mapping[str, str], engine_host: str | None) -> list[Finding]:
    """Return every finding; never raises for what it is there to find."""
    findings = [*_state(home), *_settings(home, environment)]
    try:
        engine = Engine.connect(engine_host)
        engine.ping()
    except RLMError as exc:
        return [*findings, Finding("engine", "fail", exc.message, exc.hint)]
    return [*findings, *on_engine(engine, _wanted(home, environment)), *_image(engine)]


def _wanted(home: Path, environment: Mapping[str, str]) -> RunProfile:
    """Return what a session would ask for as things are set; the usual where they cannot be read, which is a finding of its own."""
    usual = RunProfile.default()
    try:
        settings = within(load({}, environment, home), load_policy(home))
        return usual.with_limits(memory=settings.memory, cpus=settings.cpus)
    except RLMError:
        return usual


def on_engine(engine: Engine, wanted: RunProfile) -> list[Finding]:
    """Return what an engine that answers can and cannot do, and whether a session of the profile ``wanted`` fits it."""
    info, told, parts = engine.info(), engine.api.info(), engine.api.version().get("Components") or ()
    versions = {str(part.get("Name", "")).lower(): str(part.get("Version", "")) for part in parts}
    return [
        *_engine(info),
        *_product(info, versions),
        *_limits(info, told),
        *_capacity(told, wanted),
        *_runtimes(told),
        *_runtime(info, versions),
    ]


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return the public shape of the checks."""
    return {"checks": [asdict(finding) for finding in findings], "ok": all(f.level != "fail" for f in findings)}


def _state(home: Path) -> Iterator[Finding]:
    at = home
    while not at.exists() and at != at.parent:
        at = at.parent
    free = shutil.disk_usage(at).free
    level: Literal["ok", "warn"] = "ok" if free >= DISK_WARN else "warn"
    fix = "" if level == "ok" else "free some space, or set RLM_SANDBOX_HOME to a larger disk"
    yield Finding("disk", level, f"{free >> 20} MiB free under {home}", fix)
    if home.exists():
        mode = home.stat().st_mode & 0o777
        if mode & 0o077:
            yield Finding(
                "state folder", "warn", f"{home} has mode {mode:o}", f"chmod 700 {home} (done at the next start)"
            )
        else:
            yield Finding("state folder", "ok", f"{home}, private")
    else:
        yield Finding("state folder", "ok", f"{home} will be made, private")


def _settings(home: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        settings = load({}, environment, home)
        load_policy(home)
        name, credentials = choose(settings, environment)
    except RLMError as exc:
        yield Finding("settings", "fail", exc.message, exc.hint)
        return
    where = f" at {credentials.base_url}" if credentials.base_url else ""
    yield Finding("settings", "ok", "settings and policy can be read")
    yield Finding("provider", "ok", f"{name}{where}" + (", key set" if credentials.api_key else ", no key needed"))


def _engine(info: EngineInfo) -> Iterator[Finding]:
    yield Finding(
        "engine", "ok", f"{info.name}, Docker {info.version}, API {info.api}, {info.arch}, kernel {info.kernel}"
    )
    yield Finding("cgroup", "ok", f"version {info.cgroup}")
    if info.seccomp:
        yield Finding("seccomp", "ok", "supported")
    else:
        yield Finding(
            "seccomp",
            "fail",
            "the engine has no seccomp",
            "use an engine and a kernel with seccomp (CONFIG_SECCOMP_FILTER)",
        )
    if info.rootless:
        yield Finding("rootless", "ok", "the engine runs without root: a second wall behind the container's")
    else:
        yield Finding("rootless", "ok", "no: the engine runs as root")
    remapped = info.remapped and not info.rootless
    yield Finding(
        "user namespaces",
        "ok",
        "the engine remaps users" if remapped else "not remapped; containers run as an unprivileged user",
    )
    if not info.local and not info.desktop:
        yield Finding(
            "place",
            "warn",
            "the engine runs on another machine or in a virtual one",
            "a file must lie at the same path there, too; a directory needs an engine on this machine",
        )


def _product(info: EngineInfo, versions: Mapping[str, str]) -> Iterator[Finding]:
    if "podman engine" in versions:
        yield Finding(
            "product",
            "warn",
            f"Podman {versions['podman engine']} behind Docker's API; what a session needs of it is checked at every start",
            "run: rlm-sandbox doctor --deep",
        )
    elif info.desktop:
        yield Finding(
            "product",
            "warn",
            "Docker Desktop: containers run in a virtual machine, which is a second wall",
            "inputs must lie in a folder that Desktop shares, or use --snapshot with the state folder in one",
        )
    if info.os != "linux":
        yield Finding("platform", "fail", f"{info.os} containers", "switch the engine to Linux containers")
    elif info.arch not in {"x86_64", "aarch64"}:
        yield Finding(
            "platform", "fail", info.arch, "sessions run on x86-64 and arm64, for which there is an allow-list"
        )


LIMITS = {"MemoryLimit": "memory", "SwapLimit": "swap", "PidsLimit": "processes", "CpuCfsQuota": "CPU"}
"""What the engine says it can limit, by the names of its own report."""


def _limits(info: EngineInfo, told: Mapping[str, Any]) -> Iterator[Finding]:
    if info.rootless and info.cgroup == 1:
        fix = "boot with systemd.unified_cgroup_hierarchy=1"
        yield Finding("limits", "fail", "rootless with cgroup v1 ignores limits", fix)
        return
    missing = [name for key, name in LIMITS.items() if key in told and not told[key]]
    if missing:
        fix = "rootless: delegate cpu, memory and pids to your user (cgroup v2); swap alone: boot with swapaccount=1"
        yield Finding("limits", "fail", f"the engine cannot limit: {', '.join(missing)}", fix)
    else:
        yield Finding("limits", "ok", "memory, swap, processes and CPU can be limited")


def _capacity(told: Mapping[str, Any], wanted: RunProfile) -> Iterator[Finding]:
    memory, cpus = int(told.get("MemTotal") or 0), int(told.get("NCPU") or 0)
    text = f"{memory // MIB} MiB memory, {cpus} CPUs; a session may take {wanted.memory // MIB} MiB and {wanted.cpus:g}"
    if cpus < wanted.cpus:  # the engine refuses such a container
        yield Finding("capacity", "fail", text, "pass a smaller --cpus, or set RLM_CPUS")
    elif memory < wanted.memory:
        yield Finding("capacity", "warn", text, "pass a smaller --memory, or set RLM_MEMORY")
    else:
        yield Finding("capacity", "ok", text)


def _runtimes(told: Mapping[str, Any]) -> Iterator[Finding]:
    known: Mapping[str, Any] = told.get("Runtimes") or {}
    strong = {name: entry for name, entry in known.items() if name.startswith(("runsc", "kata"))}
    unbound = [name for name, entry in strong.items() if "--ignore-cgroups" in ((entry or {}).get("runtimeArgs") or ())]
    listed = ", ".join(sorted(strong)) or "none installed (runsc and kata are supported: --runtime)"
    yield Finding("stronger runtimes", "ok", listed)
    if unbound:
        yield Finding(
            "runtime limits",
            "warn",
            f"{', '.join(sorted(unbound))} is registered with --ignore-cgroups: sessions watch memory and processes by themselves",
            "register it without, where the engine has cgroups",
        )


def _runtime(info: EngineInfo, versions: Mapping[str, str]) -> Iterator[Finding]:
    text = versions.get("runc", "")
    match = _VERSION.search(text)
    if match is None and "crun" in (info.default_runtime, *versions):
        yield Finding("runc", "ok", f"not used: the default runtime is {info.default_runtime or 'crun'}")
        return
    if match is None:
        yield Finding("runc", "warn", "its version is not told", "compare it with the project's advisories")
        return
    number = (int(match[1]), int(match[2]), int(match[3]))
    open_ = [name for name, fixed in RUNC_FIXED if not is_fixed(number, fixed)]
    if not open_:
        yield Finding("runc", "ok", text)
    else:
        patched = " (a distribution's build: it may carry the patches)" if "+" in text or "~" in text else ""
        yield Finding(
            "runc",
            "warn",
            f"{text} is older than the fixes of {'; '.join(open_)}{patched}",
            "upgrade runc, or use --runtime runsc",
        )


def is_fixed(version: tuple[int, int, int], fixed: tuple[tuple[int, int, int], ...]) -> bool:
    """Tell whether ``version`` holds a fix first released as ``fixed``, one for each maintained line."""
    for line in fixed:
        if version[:2] == line[:2]:
            return version >= line
    return version > max(fixed)


def _image(engine: Engine) -> Iterator[Finding]:
    for name in ("base", "data"):
        found = image.current(engine, name)
        if found is None:
            yield Finding(
                f"image {name}",
                "ok" if name == "data" else "warn",
                "not built yet for this version",
                f"it is built on first use, or now: rlm-sandbox image build {name}",
            )
        else:
            yield Finding(f"image {name}", "ok", f"{found.ref}, {found.id[:19]}, Python {platform.python_version()}")
