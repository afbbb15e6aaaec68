import hashlib
import platform
from dataclasses import replace

import pytest

from rlm_sandbox import __version__
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.input_sample import sample_of
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.container.selfcheck import (
    GVISOR,
    NATIVE,
    VIRTUAL_MACHINE,
    expectations,
    findings,
    has_inodes,
    remarks,
    verify,
)
from rlm_sandbox.errors import ControlMissing, ImageError
from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire.messages import Report

pytestmark = pytest.mark.unit

PROFILE = RunProfile(cpus=2.0)
NONE = "0000000000000000"


@pytest.fixture
def admitted(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"hello")
    path.chmod(0o644)
    taken = admit(path, stage_dir=tmp_path / "stage")
    yield taken
    taken.close()


@pytest.fixture
def good(admitted):
    """A report as engine 20.10 with runc gives it on cgroup v1."""
    return Report(
        protocol=PROTOCOL_VERSION, guest_version=__version__, python="3.11.7", uid=65534, gid=65534, groups=[65534],
        cap_eff=NONE, cap_prm=NONE, cap_bnd=NONE, cap_inh=NONE, cap_amb=NONE, no_new_privs=1, seccomp=2,
        socket_denied=True, dumpable=0, memory_max=2147483648, swap_max=0, pids_max=128, cpu_milli=2000, nofile=1024,
        core=0, root_readonly=True, interfaces=["lo"],
        mounts=[
            "/ overlay ro,relatime,lowerdir=/var/lib/docker/overlay2/l/A", "/proc proc rw,nosuid,nodev,noexec,relatime",
            "/dev tmpfs rw,nosuid,size=65536k,mode=755", "/dev/pts devpts rw,nosuid,noexec,relatime", "/dev/pts tmpfs ro,relatime",
            "/sys sysfs ro,nosuid,nodev,noexec,relatime", "/sys/fs/cgroup tmpfs rw,nosuid,nodev,noexec,relatime,mode=755",
            "/sys/fs/cgroup/memory cgroup ro,nosuid,nodev,noexec,relatime,memory", "/dev/mqueue mqueue rw,nosuid,nodev",
            "/tmp tmpfs rw,nosuid,nodev,noexec,relatime,size=262144k,nr_inodes=16384", "/input/a.log ext4 ro,relatime",
            "/etc/hostname ext4 ro,relatime", "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k,nr_inodes=1024",
            "/proc/bus proc ro,nosuid,nodev,noexec,relatime", "/proc/acpi tmpfs ro,relatime",
            "/proc/keys tmpfs rw,nosuid,size=65536k,mode=755", "/sys/firmware tmpfs ro,relatime",
        ],
        env=sorted(PROFILE.environment), kernel_release=platform.release(),
        input_dev=admitted.identity.dev, input_ino=admitted.identity.ino, input_size=5,
        input_sample="",
    )  # fmt: skip


def test_a_container_as_it_should_be_passes(good, admitted):
    verify(good, PROFILE, admitted)


IN_A_USER_NAMESPACE = [
    f"/dev/{name} {kind} rdev={number},rw,nosuid,relatime,size=1995412k,nr_inodes=498853,mode=755,inode64"
    for kind in ("devtmpfs", "tmpfs")
    for name, number in [
        ("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0"),
    ]
]  # fmt: skip
"""Where mknod is not allowed, runc and crun mount the host's nodes: rootless Docker 26.1, userns-remap; Debian 13."""


def test_the_six_device_nodes_of_a_container_in_a_user_namespace_pass(good, admitted):
    verify(replace(good, mounts=[*good.mounts, *IN_A_USER_NAMESPACE]), PROFILE, admitted)
    mask = "/proc/interrupts devtmpfs rdev=1:3,rw,nosuid,relatime"
    verify(replace(good, mounts=[*good.mounts, mask]), PROFILE, admitted)


def test_a_mount_that_is_not_ours_is_named_with_what_to_do(good, admitted):
    with pytest.raises(ControlMissing) as caught:
        verify(replace(good, mounts=[*good.mounts, "/run tmpfs rw,nosuid", "/etc/passwd ext4 ro"]), PROFILE, admitted)
    assert "/run tmpfs rw,nosuid; /etc/passwd ext4 ro" in str(caught.value)
    assert "mounts /run, /etc/passwd in every container" in caught.value.hint


BROKEN = [
    ({"mounts": ["/dev/null devtmpfs rw"]}, "mounts"),
    ({"mounts": ["/dev/null devtmpfs rdev=1:1,rw"]}, "mounts"),
    ({"mounts": ["/dev/null ext4 rdev=1:3,rw"]}, "mounts"),
    ({"mounts": ["/dev/mem devtmpfs rdev=1:1,rw"]}, "mounts"),
    ({"mounts": ["/dev/kvm devtmpfs rdev=10:232,rw"]}, "mounts"),
    ({"mounts": ["/dev/zero devtmpfs rdev=1:3,rw"]}, "mounts"),
    ({"mounts": ["/proc/sysrq-trigger devtmpfs rdev=1:1,rw"]}, "mounts"),
    ({"mounts": ["/proc/interrupts devtmpfs rw"]}, "mounts"),
    ({"cap_eff": "00000000a80425fb"}, "capabilities"),
    ({"cap_bnd": "0000000000000001"}, "capabilities"),
    ({"cap_amb": "0000000000000400"}, "capabilities"),
    ({"cap_prm": ""}, "capabilities"),
    ({"uid": 0}, "user"),
    ({"gid": 0}, "user"),
    ({"groups": [65534, 0]}, "user"),
    ({"no_new_privs": 0}, "no-new-privileges"),
    ({"no_new_privs": -1}, "no-new-privileges"),
    ({"seccomp": 0}, "seccomp"),
    ({"seccomp": -1}, "seccomp"),
    ({"socket_denied": False}, "seccomp profile"),
    ({"dumpable": 1}, "agent protection"),
    ({"memory_max": -1}, "memory limit"),
    ({"memory_max": 2147483649}, "memory limit"),
    ({"swap_max": 1}, "swap limit"),
    ({"pids_max": -1}, "process limit"),
    ({"pids_max": 4096}, "process limit"),
    ({"cpu_milli": -1}, "CPU limit"),
    ({"cpu_milli": 4000}, "CPU limit"),
    ({"nofile": -1}, "open-file limit"),
    ({"nofile": 1048576}, "open-file limit"),
    ({"core": -1}, "core dumps"),
    ({"root_readonly": False}, "read-only root"),
    ({"interfaces": ["eth0", "lo"]}, "no network"),
    ({"env": ["HTTP_PROXY", "PATH"]}, "environment"),
    ({"mounts": ["/ overlay rw,relatime"]}, "mounts"),
    ({"mounts": ["/var/run/docker.sock tmpfs rw"]}, "mounts"),
    ({"mounts": ["/etc/secrets tmpfs ro"]}, "mounts"),
    ({"mounts": ["/dev/pts tmpfs rw"]}, "mounts"),
    ({"mounts": ["/tmp ext4 rw,noexec,nosuid,nodev"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev,noexec"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev,noexec,size=262144k"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev,noexec,size=1g,nr_inodes=16384"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev,noexec,size=262144k,nr_inodes=99999"]}, "mounts"),
    ({"mounts": ["/tmp tmpfs rw,nosuid,nodev,noexec,size=all,nr_inodes=16384"]}, "mounts"),
    ({"mounts": ["/input/a.log ext4 rw"]}, "mounts"),
    ({"mounts": ["/input/b.log ext4 ro"]}, "mounts"),
    ({"mounts": ["/etc/hosts ext4 rw,relatime"]}, "mounts"),
    ({"mounts": ["/proc/x ext4 ro"]}, "mounts"),
    ({"mounts": ["/"]}, "mounts"),
    ({"mounts": [""]}, "mounts"),
    ({"input_ino": 1}, "input identity"),
    ({"input_dev": 1}, "input identity"),
    ({"input_ino": -1}, "input identity"),
    ({"kernel_release": "other", "input_size": 6}, "input identity"),
    ({"kernel_release": "other", "input_ino": -1}, "input identity"),
]


@pytest.mark.parametrize(("change", "control"), BROKEN)
def test_each_control_that_is_off_stops_the_start_by_name(good, admitted, change, control):
    report = replace(good, **change)
    assert control in [name for name, _, _ in findings(report, PROFILE, admitted)]
    with pytest.raises(ControlMissing, match=control) as caught:
        verify(report, PROFILE, admitted)
    assert caught.value.hint


def test_of_an_engine_elsewhere_the_bytes_are_compared_and_not_the_inode(good, admitted):
    sample = sample_of(admitted)
    assert (sample.numbers, sample.whole) == ([0, 5], True)
    seen = replace(good, input_dev=1, input_ino=1, input_sample=hashlib.sha256(b"hello").hexdigest())
    verify(seen, PROFILE, admitted, local=False, sample=sample)
    for other in (hashlib.sha256(b"jello").hexdigest(), ""):
        with pytest.raises(ControlMissing, match="its bytes are others than those of the file here") as caught:
            verify(replace(seen, input_sample=other), PROFILE, admitted, local=False, sample=sample)
        assert "another machine" in caught.value.hint
    with pytest.raises(ControlMissing, match="4 bytes, admitted 5"):
        verify(replace(seen, input_size=4), PROFILE, admitted, local=False, sample=sample)
    verify(replace(seen, input_size=9), PROFILE, admitted, local=False, sample=sample)  # a log that grew meanwhile


def test_where_kernels_differ_a_runtime_without_our_inodes_is_compared_by_bytes_too(good, admitted):
    sample = sample_of(admitted)
    for runtime in ("runsc", "kata"):
        profile = replace(PROFILE, runtime=runtime)
        assert not has_inodes(profile, local=True)
        found = [name for name, _, _ in findings(replace(good, input_ino=1), profile, admitted, sample=sample)]
        assert "input identity" in found
    assert has_inodes(PROFILE, local=True)
    assert not has_inodes(PROFILE, local=False)


@pytest.mark.parametrize("change", [{"protocol": PROTOCOL_VERSION + 1}, {"guest_version": "0.0.0"}])
def test_an_image_of_another_version_is_an_image_error_with_its_fix(good, admitted, change):
    with pytest.raises(ImageError) as caught:
        verify(replace(good, **change), PROFILE, admitted)
    assert "rlm-sandbox image build" in caught.value.hint


def test_stricter_limits_than_asked_for_are_fine(good, admitted):
    verify(replace(good, memory_max=1 << 20, pids_max=10, cpu_milli=50, nofile=10), PROFILE, admitted)


def test_every_missing_control_is_named_at_once(good, admitted):
    with pytest.raises(ControlMissing, match=r"user .*seccomp .*no network"):
        verify(replace(good, uid=0, seccomp=0, interfaces=["eth0"]), PROFILE, admitted)


def test_behind_another_kernel_inodes_are_not_compared_but_sizes_are(good, admitted):
    other = replace(good, kernel_release="5.15.0-linuxkit", input_ino=7, input_dev=7)
    verify(other, PROFILE, admitted)
    verify(replace(good, input_ino=7), PROFILE, admitted, local=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, NATIVE), ("runc", NATIVE), ("crun", NATIVE), ("nosuch", NATIVE), ("runsc", GVISOR), ("runsc-kvm", GVISOR),
        ("io.containerd.runsc.v1", GVISOR), ("kata", VIRTUAL_MACHINE), ("io.containerd.kata.v2", VIRTUAL_MACHINE),
        ("kata-qemu", VIRTUAL_MACHINE),
    ],
)  # fmt: skip
def test_what_a_runtime_must_show_goes_by_its_name_and_an_unknown_one_must_show_all(name, expected):
    assert expectations(name) is expected


def test_gvisor_is_excused_from_what_it_cannot_show_and_from_nothing_else(good, admitted):
    profile = PROFILE.with_limits(runtime="runsc")
    inside = replace(good, memory_max=profile.engine_memory, pids_max=-1, cpu_milli=-1, cap_amb="", mounts=["/ 9p rw"],
                     input_ino=3, input_dev=3)  # fmt: skip
    verify(inside, profile, admitted)
    assert remarks(inside, profile) == []
    (told,) = remarks(replace(inside, memory_max=1 << 40), profile)
    assert "--ignore-cgroups" in told
    assert remarks(replace(good, memory_max=1 << 40), PROFILE) == []
    for change in (
        {"seccomp": 0},
        {"socket_denied": False},
        {"no_new_privs": 0},
        {"cap_amb": "1"},
        {"uid": 0},
        {"interfaces": ["eth0"]},
        {"cap_eff": "1"},
        {"env": ["HTTP_PROXY"]},
        {"root_readonly": False},
    ):
        with pytest.raises(ControlMissing):
            verify(replace(inside, **change), profile, admitted)
