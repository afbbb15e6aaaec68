"""The report reads both generations of cgroups, and never says more than the wire takes."""

import hashlib

import pytest

from rlm_sandbox.guest import linux, report
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameDecoder

pytestmark = pytest.mark.unit

V1 = {
    "memory/memory.limit_in_bytes": "1073741824\n",
    "memory/memory.memsw.limit_in_bytes": "1073741824\n",
    "pids/pids.max": "256\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
}
V2 = {"memory.max": "1073741824\n", "memory.swap.max": "0\n", "pids.max": "256\n", "cpu.max": "150000 100000\n"}
V1_OPEN = {
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.memsw.limit_in_bytes": "9223372036854771712\n",
    "pids/pids.max": "max\n",
    "cpu/cpu.cfs_quota_us": "-1\n",
    "cpu/cpu.cfs_period_us": "100000\n",
}
V2_OPEN = {"memory.max": "max\n", "memory.swap.max": "max\n", "pids.max": "max\n", "cpu.max": "max 100000\n"}

SET = {"memory_max": 1 << 30, "swap_max": 0, "pids_max": 256, "cpu_milli": 1500}
OPEN = {"memory_max": -1, "swap_max": -1, "pids_max": -1, "cpu_milli": -1}


@pytest.fixture
def files(monkeypatch):
    """Let the guest read these files and no others."""
    contents: dict[str, str] = {}
    monkeypatch.setattr(linux, "read", lambda path: contents.get(path, ""))
    return contents


def round_trip(message):
    decoder = FrameDecoder()
    decoder.feed(message.encode())
    return m.parser((m.Report,))(*decoder.next_frame())


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [(V1, SET), (V2, SET), (V1_OPEN, OPEN), (V2_OPEN, OPEN), ({}, OPEN), ({"memory.max": "x"}, OPEN)],
)
def test_limits_of_either_cgroup_version(files, cgroup, limits):
    files.update({f"/sys/fs/cgroup/{name}": text for name, text in cgroup.items()})
    built = report.build()
    assert {name: getattr(built, name) for name in limits} == limits
    assert round_trip(built) == built


def test_status_and_mounts_are_copied_and_the_mounts_own_options_come_first(files):
    files["/proc/self/status"] = "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    files["/proc/self/mountinfo"] = (
        "21 1 0:20 / / ro,relatime shared:1 - overlay overlay rw,lowerdir=/a\n"
        "22 21 0:21 / /tmp rw,nosuid,nodev,noexec - tmpfs tmpfs rw,size=65536k,nr_inodes=1000\n"
        "23 21 0:6 /null /dev/null rw,nosuid master:2 - devtmpfs udev rw,mode=755\n"
        "garbage\n"
    )
    built = report.build()
    assert (built.cap_eff, built.no_new_privs, built.seccomp) == ("0" * 16, 1, 2)
    assert built.mounts == [
        "/ overlay ro,relatime,lowerdir=/a",
        "/tmp tmpfs rw,nosuid,nodev,noexec,size=65536k,nr_inodes=1000",
        "/dev/null devtmpfs rdev=1:3,rw,nosuid,mode=755",
    ]


def test_nothing_readable_is_a_report_of_unknowns(files, monkeypatch):
    monkeypatch.setattr(report.linux, "no_new_privs", lambda: -1)
    built = report.build()
    assert (built.cap_eff, built.no_new_privs, built.seccomp, built.mounts) == ("", -1, -1, [])
    assert round_trip(built) == built


def test_absurd_values_are_clipped_to_what_the_wire_takes(files, monkeypatch):
    files["/proc/self/status"] = "CapEff:\t" + "f" * 500 + "\nSeccomp:\t77\nNoNewPrivs:\tno\n"
    files["/proc/self/mountinfo"] = ("1 1 0:1 / /" + "x" * 2000 + " rw - ext4 /dev rw\n") * 500
    files["/sys/fs/cgroup/cpu.max"] = "1 0"
    for number in range(300):
        monkeypatch.setenv(f"NAME_{number}_" + "x" * 300, "1")
    built = report.build()
    assert round_trip(built) == built
    assert (built.seccomp, built.no_new_privs, built.cpu_milli) == (-1, -1, -1)
    assert built.mounts[-1] == "/ unknown the-list-was-cut"
    assert built.env[-1] == "the-list-was-cut"


def test_the_input_is_its_directorys_only_entry_or_the_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "INPUT", str(tmp_path / "input"))
    assert report._input() == (-1, -1, -1)
    (tmp_path / "input").mkdir()
    assert report._input() == (-1, -1, -1)
    file = tmp_path / "input" / "log.txt"
    file.write_text("hello")
    assert report._input() == (file.stat().st_dev, file.stat().st_ino, 5)
    (tmp_path / "input" / "index.jsonl").write_text("")
    assert report._input() == (-1, -1, -1)
    tree = tmp_path / "input" / "tree"
    tree.mkdir()
    assert report._input()[:2] == (tree.stat().st_dev, tree.stat().st_ino)


def test_the_ranges_that_the_host_names_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "INPUT", str(tmp_path))
    assert report._sample([0, 5]) == ""
    (tmp_path / "log.txt").write_bytes(b"0123456789")
    assert report._sample([0, 10]) == hashlib.sha256(b"0123456789").hexdigest()
    assert report._sample([1, 2, 8, 9]) == hashlib.sha256(b"1289").hexdigest()
    assert report._sample([2**63, 1]) == ""
    assert report.build([0, 1]).input_sample == hashlib.sha256(b"0").hexdigest()
    assert report.build().input_sample == ""
    (tmp_path / "tree").mkdir()
    (tmp_path / "log.txt").rename(tmp_path / "index.jsonl")
    assert report._sample([0, 1]) == hashlib.sha256(b"0").hexdigest()


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
    ],
)
def test_out_of_memory_kills_are_counted_in_either_version(files, name, text, count):
    files[f"/sys/fs/cgroup/{name}"] = text
    assert linux.oom_kills() == count


def test_descendants_are_found_through_their_parents_and_strays_are_not_among_them():
    parent_of = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20}
    assert linux.below(10, parent_of) == {11, 12}
    assert linux.below(1, parent_of) == {10, 11, 12, 20, 21}
    assert linux.below(99, parent_of) == set()
