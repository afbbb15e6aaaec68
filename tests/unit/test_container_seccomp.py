import json

import pytest

from rlm_sandbox.container import seccomp

pytestmark = pytest.mark.unit

NEVER = """
    socket connect bind listen accept accept4 sendmmsg recvmmsg setsockopt
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
    mount umount umount2 move_mount open_tree fsopen fsmount fsconfig fspick mount_setattr pivot_root chroot
    unshare setns bpf perf_event_open userfaultfd keyctl add_key request_key
    io_uring_setup io_uring_enter io_uring_register memfd_create memfd_secret execveat
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl syslog
    iopl ioperm mknod mknodat open_by_handle_at name_to_handle_at lookup_dcookie
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
    shmget shmat msgget semget mq_open fanotify_init seccomp landlock_create_ruleset
    clock_settime settimeofday adjtimex clock_adjtime sethostname setdomainname vmsplice splice tee
    sched_setscheduler sched_setattr setpriority ioprio_set migrate_pages move_pages mbind sync syncfs
"""


def rules(name):
    return [rule for rule in seccomp.profile()["syscalls"] if name in rule["names"]]


@pytest.mark.parametrize("name", NEVER.split())
def test_a_dangerous_call_is_in_no_group(name):
    assert name not in seccomp.allowed_names()


def test_the_checked_in_profile_is_what_the_groups_generate():
    assert seccomp.JSON_PATH.read_text(encoding="utf-8") == seccomp.render()


def test_what_no_group_names_is_an_error_for_both_architectures_and_no_other():
    data = seccomp.profile()
    assert data["defaultAction"] == "SCMP_ACT_ERRNO"
    assert [(entry["architecture"], entry["subArchitectures"]) for entry in data["archMap"]] == [
        ("SCMP_ARCH_X86_64", []),
        ("SCMP_ARCH_AARCH64", []),
    ]


def test_only_equality_is_compared_because_a_filter_sees_bits_that_the_kernel_drops():
    ops = {arg["op"] for rule in seccomp.profile()["syscalls"] for arg in rule["args"]}
    assert ops == {"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"}


def test_clone3_does_not_exist_so_that_the_c_library_uses_clone():
    (rule,) = rules("clone3")
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_clone_makes_no_namespace():
    (rule,) = rules("clone")
    (arg,) = rule["args"]
    assert (arg["op"], arg["value"], arg["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0x7E020000, 0)


def test_a_pair_of_sockets_is_unix_and_a_stream():
    (rule,) = rules("socketpair")
    domain, kind = rule["args"]
    assert (domain["index"], domain["value"]) == (0, 1)
    assert (kind["index"], kind["value"], kind["valueTwo"]) == (1, 0xF, 1)


def test_an_addressed_send_is_refused():
    (rule,) = rules("sendto")
    (arg,) = rule["args"]
    assert (arg["index"], arg["op"], arg["value"]) == (4, "SCMP_CMP_EQ", 0)


def test_no_terminal_request_is_allowed_that_could_type():
    allowed = {rule["args"][0]["value"] for rule in rules("ioctl")}
    assert allowed == set(seccomp.IOCTLS.values())
    assert not allowed & {0x5412, 0x541C, 0x40049409}


def test_limits_of_another_process_cannot_be_set():
    (rule,) = rules("prlimit64")
    assert [(arg["index"], arg["value"]) for arg in rule["args"]] == [(0, 0)]


def test_every_group_has_a_reason_and_no_unconditional_call_is_listed_twice():
    free = [name for group in seccomp.GROUPS if not group.args for name in group.names.split()]
    assert len(free) == len(set(free))
    assert all(len(group.reason) > 5 for group in seccomp.GROUPS)
    conditional = {name for group in seccomp.GROUPS if group.args for name in group.names.split()}
    assert not conditional & set(free)


def test_the_engine_gets_the_same_rules_without_comments():
    sent = json.loads(seccomp.compact())
    full = seccomp.profile()
    assert [rule["names"] for rule in sent["syscalls"]] == [rule["names"] for rule in full["syscalls"]]
    assert not any("comment" in rule for rule in sent["syscalls"])
