"""What ``doctor`` says of engines of many kinds, from what they say of themselves."""

import platform

import pytest

from rlm_sandbox.container.engine import Engine
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.doctor import checks

pytestmark = pytest.mark.unit

DEBIAN = {
    "ServerVersion": "20.10.24+dfsg1", "SecurityOptions": ["name=seccomp,profile=default"], "CgroupVersion": "1",
    "CgroupDriver": "cgroupfs", "OperatingSystem": "Debian GNU/Linux 12 (bookworm)", "DefaultRuntime": "runc",
    "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}}, "OSType": "linux",
    "Architecture": "x86_64", "KernelVersion": platform.release(), "Name": platform.node(), "NCPU": 2,
    "MemTotal": 25276063744, "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True, "CpuCfsQuota": True,
}  # fmt: skip

ROOTLESS = {
    **DEBIAN, "ServerVersion": "27.3.1", "CgroupVersion": "2", "CgroupDriver": "systemd",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
}  # fmt: skip

UNDELEGATED = {**ROOTLESS, "CgroupDriver": "none", "MemoryLimit": False, "PidsLimit": False, "CpuCfsQuota": False}

REMAPPED = {**DEBIAN, "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=userns"]}

DESKTOP = {
    **DEBIAN, "ServerVersion": "28.0.4", "OperatingSystem": "Docker Desktop", "CgroupVersion": "2", "Architecture": "aarch64",
    "Name": "docker-desktop", "KernelVersion": "6.10.14-linuxkit",
}  # fmt: skip

PODMAN = {
    **DEBIAN, "ServerVersion": "4.9.3", "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
    "CgroupVersion": "2", "OperatingSystem": "ubuntu", "DefaultRuntime": "crun", "Runtimes": {"crun": {"path": "/usr/bin/crun"}},
}  # fmt: skip

NO_SECCOMP = {**DEBIAN, "SecurityOptions": ["name=apparmor"]}
WINDOWS = {**DEBIAN, "OSType": "windows"}
OLD_ARM = {**DEBIAN, "Architecture": "armv7l"}

WANTED = RunProfile.default().with_limits(memory=2 << 30, cpus=2)

RUNC = [{"Name": "Engine", "Version": "20.10.24"}, {"Name": "runc", "Version": "1.1.5+ds1"}]


class Api:
    api_version = "1.45"

    def __init__(self, info, components):
        self._info = info
        self._components = components

    def info(self):
        return self._info

    def version(self):
        return {"Components": self._components}


def findings(info, components=RUNC):
    engine = Engine.__new__(Engine)
    engine.host = engine.address = "unix:///var/run/docker.sock"
    engine._info = None
    engine.api = Api(info, components)
    return {finding.check: finding for finding in checks.on_engine(engine, WANTED)}


def levels(found, level):
    return {name for name, finding in found.items() if finding.level == level}


def test_a_plain_engine_has_nothing_against_it_but_its_old_runc():
    found = findings(DEBIAN)
    assert levels(found, "fail") == set()
    assert levels(found, "warn") == {"runc"}
    assert "may carry the patches" in found["runc"].detail
    assert found["cgroup"].detail == "version 1"


def test_a_rootless_engine_with_its_limits_delegated_is_welcome():
    found = findings(ROOTLESS, [{"Name": "runc", "Version": "1.3.3"}])
    assert levels(found, "fail") == levels(found, "warn") == set()
    assert "second wall" in found["rootless"].detail


def test_a_rootless_engine_that_cannot_limit_is_refused_with_the_fix():
    found = findings(UNDELEGATED)
    assert found["limits"].level == "fail"
    assert found["limits"].detail.endswith("memory, processes, CPU")
    assert "delegate" in found["limits"].fix


def test_a_rootless_engine_on_the_old_cgroups_is_refused():
    found = findings({**ROOTLESS, "CgroupVersion": "1"})
    assert (found["limits"].level, "cgroup v1" in found["limits"].detail) == ("fail", True)


def test_remapped_users_are_noticed():
    assert "remaps" in findings(REMAPPED)["user namespaces"].detail


def test_docker_desktop_is_noticed_with_what_changes():
    found = findings(DESKTOP)
    assert "Docker Desktop" in found["product"].detail
    assert "shares" in found["product"].fix
    assert levels(found, "fail") == set()


def test_podman_is_noticed_and_left_to_the_deep_check():
    found = findings(PODMAN, [{"Name": "Podman Engine", "Version": "4.9.3"}, {"Name": "Conmon", "Version": "2.1"}])
    assert "Podman 4.9.3" in found["product"].detail
    assert "--deep" in found["product"].fix
    assert found["runc"].detail == "not used: the default runtime is crun"


def test_an_engine_elsewhere_is_said_to_be():
    assert findings({**DEBIAN, "Name": "another-host"})["place"].level == "warn"


@pytest.mark.parametrize(("info", "check"), [(NO_SECCOMP, "seccomp"), (WINDOWS, "platform"), (OLD_ARM, "platform")])
def test_what_cannot_confine_is_a_failure(info, check):
    found = findings(info)
    assert found[check].level == "fail"
    assert found[check].fix


def test_gvisor_without_cgroups_is_a_warning_and_with_them_none():
    entry = {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=none"]}
    found = findings({**DEBIAN, "Runtimes": {"runc": {}, "runsc": entry}})
    assert found["stronger runtimes"].detail == "runsc"
    assert "runtime limits" not in found
    entry = {**entry, "runtimeArgs": ["--network=none", "--ignore-cgroups"]}
    assert findings({**DEBIAN, "Runtimes": {"runsc": entry, "kata": None}})["runtime limits"].level == "warn"


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("1.0.0", 2), ("1.1.5+ds1", 2), ("1.1.11", 2), ("1.1.12", 1), ("1.1.15", 1), ("1.2.0", 1), ("1.2.7", 1), ("1.2.8", 0),
        ("1.2.9", 0), ("1.3.0", 1), ("1.3.2", 1), ("1.3.3", 0), ("1.4.0", 0), ("1.4.2", 0), ("1.5.0", 0), ("2.0.0", 0),
    ],
)  # fmt: skip
def test_known_holes_of_runc_are_told_by_version(version, holes):
    found = findings(DEBIAN, [{"Name": "runc", "Version": version}])["runc"]
    assert (found.level, found.detail.count("CVE-")) == ("warn" if holes else "ok", {0: 0, 1: 3, 2: 4}[holes])


@pytest.mark.parametrize("components", [[], [{}], [{"Name": "runc"}], [{"Name": "runc", "Version": "devel"}]])
def test_an_engine_that_does_not_tell_is_a_warning_and_no_crash(components):
    assert findings(DEBIAN, components)["runc"].level == "warn"


def test_nothing_at_all_is_answered_with_findings():
    found = findings({"OSType": "linux", "Architecture": "x86_64"})
    assert found["seccomp"].level == "fail"


@pytest.mark.parametrize(
    ("engine", "level", "fix"),
    [
        (DEBIAN, "ok", ""),
        ({**DEBIAN, "MemTotal": 1 << 30}, "warn", "--memory"),
        ({**DEBIAN, "NCPU": 1}, "fail", "--cpus"),
    ],
)
def test_a_session_must_fit_the_machine(engine, level, fix):
    found = findings(engine)["capacity"]
    assert found.level == level
    assert fix in found.fix
    assert "a session may take 2048 MiB and 2" in found.detail


def test_what_a_session_would_take_is_what_is_set(tmp_path):
    (tmp_path / "config.toml").write_text("memory = '512m'\n")
    wanted = checks._wanted(tmp_path, {"RLM_CPUS": "0.5"})
    assert (wanted.memory, wanted.cpus) == (512 << 20, 0.5)
    (tmp_path / "config.toml").write_text("not toml")
    assert checks._wanted(tmp_path, {}) == RunProfile.default()
