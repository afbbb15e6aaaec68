import dataclasses

import pytest

from rlm_sandbox.container import seccomp
from rlm_sandbox.container.profile import MIB, Mount, RunProfile, default_cpus, own_uid
from rlm_sandbox.errors import UsageError

pytestmark = pytest.mark.unit


def config(profile=None, **kwargs):
    return (profile or RunProfile(cpus=2.0)).to_config("sha256:1", [Mount("/a", "/input/a")], kwargs.get("labels"))


def test_every_hardening_flag_is_set():
    host = config()["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], [])
    assert host["SecurityOpt"] == ["no-new-privileges:true", f"seccomp={seccomp.compact()}"]
    assert host["Memory"] == host["MemorySwap"] == 2048 * MIB
    assert host["NanoCpus"] == 2_000_000_000
    assert host["PidsLimit"] == 640
    assert host["LogConfig"] == {"Type": "none", "Config": {}}
    assert host["AutoRemove"] is True
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("none", "private")
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert host["OomKillDisable"] is False
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert limits["core"] == limits["msgqueue"] == (0, 0)
    assert limits["fsize"] == (256 * MIB, 256 * MIB)
    assert limits["nofile"] == (1024, 1024)


def test_every_writable_mount_is_small_and_cannot_execute():
    for options in config()["HostConfig"]["Tmpfs"].values():
        flags = options.split(",")
        assert {"noexec", "nosuid", "nodev"} <= set(flags)
        assert any(flag.startswith("size=") for flag in flags)
        assert any(flag.startswith("nr_inodes=") for flag in flags)


def test_bind_mounts_are_read_only_and_take_nothing_below_with_them():
    (mount,) = config()["HostConfig"]["Mounts"]
    assert mount["ReadOnly"] is True
    assert mount["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}


def test_the_environment_is_a_closed_list_and_the_engines_own_variable_is_removed():
    names = [entry.partition("=")[0] for entry in config()["Env"]]
    assert sorted(names) == sorted([*RunProfile().environment, "HOSTNAME"])
    assert "HOSTNAME" in config()["Env"]
    assert not any("proxy" in name.lower() for name in names)


def test_stdin_ends_with_its_writer_and_there_is_no_terminal():
    body = config()
    assert (body["OpenStdin"], body["StdinOnce"], body["Tty"]) == (True, True, False)
    assert all(body[f"Attach{name}"] for name in ("Stdin", "Stdout", "Stderr"))
    assert body["User"] == "65534:65534"


def test_every_session_has_a_user_of_its_own_and_keeps_it():
    users = [own_uid("/home/me", name) for name in ("a", "b", "c", "a")]
    assert users[0] == users[3]
    assert len({*users, own_uid("/home/you", "a"), own_uid("/home/me\0a")}) == 4
    assert all(65536 < user < 2**31 - 1 for user in users)
    assert config(dataclasses.replace(RunProfile(), uid=users[0]))["User"] == f"{users[0]}:65534"


def test_pseudo_terminals_of_which_the_host_has_few_are_hidden():
    assert "/dev/pts" in config()["HostConfig"]["MaskedPaths"]


def test_a_runtime_is_named_only_when_one_is_chosen():
    assert "Runtime" not in config()["HostConfig"]
    assert config(RunProfile().with_limits(runtime="runsc"))["HostConfig"]["Runtime"] == "runsc"


def test_less_memory_means_less_scratch_space():
    small = RunProfile().with_limits(memory=512 * MIB)
    assert (small.memory, small.tmpfs) == (512 * MIB, 64 * MIB)
    assert RunProfile().with_limits(memory=8192 * MIB).tmpfs == 256 * MIB


@pytest.mark.parametrize("limits", [{"memory": 1024}, {"cpus": 0.001}, {"cpus": -1}])
def test_limits_that_cannot_work_are_refused(limits):
    with pytest.raises(UsageError):
        RunProfile().with_limits(**limits)


def test_labels_of_profile_and_launch_are_both_set():
    profile = dataclasses.replace(RunProfile(), labels={"a": "1"})
    assert config(profile, labels={"b": "2"})["Labels"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(("host", "wanted"), [(1, 1.0), (2, 2.0), (64, 2.0)])
def test_the_default_is_two_cpus_or_what_there_is(host, wanted):
    assert default_cpus(host) == wanted


def test_a_summary_identifies_the_filter_in_force():
    assert len(RunProfile().summary()["seccomp_sha256"]) == 64


def test_scratch_space_shared_memory_processes_and_open_files_can_be_chosen():
    chosen = RunProfile.default().with_limits(
        memory=1024 * MIB, pids=32, tmpfs=300 * MIB, tmpfs_inodes=100, shm=2 * MIB, nofile=200
    )
    host = chosen.host_config([])
    assert host["PidsLimit"] == 32
    assert "size=314572800,nr_inodes=100" in host["Tmpfs"]["/tmp"]
    assert "size=2097152," in host["Tmpfs"]["/dev/shm"]
    limits = {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}
    assert (limits["nofile"], limits["fsize"]) == (200, 300 * MIB)
    assert chosen.with_limits(memory=512 * MIB).tmpfs == 64 * MIB


@pytest.mark.parametrize(
    "limits", [{"tmpfs": 0}, {"shm": 0}, {"tmpfs": 3 << 30}, {"memory": 64 * MIB, "shm": 65 * MIB}]
)
def test_scratch_space_is_never_without_end_and_never_more_than_the_memory(limits):
    with pytest.raises(UsageError, match="is not between"):
        RunProfile.default().with_limits(**limits)
