"""The filter that the guest loads by itself says the same as the groups, call by call and argument by argument."""

import errno
import platform
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.container import guest_filter, seccomp
from rlm_sandbox.guest import confine

pytestmark = pytest.mark.unit

ALLOW, DENY, ABSENT, KILL = "allow", "EPERM", "ENOSYS", "kill"
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ENDS = {confine._ALLOW: ALLOW, confine._EPERM: DENY, confine._ENOSYS: ABSENT, confine._KILL: KILL}


def decide(program, number, arguments, machine):
    """Run a filter as the kernel would."""
    words = {0: number & 0xFFFFFFFF, 4: machine}
    for index, value in enumerate(arguments):
        words[16 + 8 * index] = value & 0xFFFFFFFF
        words[20 + 8 * index] = value >> 32 & 0xFFFFFFFF
    at = held = 0
    while True:
        code, yes, no, constant = program[at]
        at += 1
        if code == confine._LOAD:
            held = words[constant]
        elif code == confine._AND:
            held &= constant
        elif code == confine._RET:
            return _ENDS[constant]
        else:
            holds = {
                confine._JEQ: held == constant,
                confine._JGE: held >= constant,
                confine._JGT: held > constant,
            }[code]
            at += yes if holds else no


def expected(machine, number, arguments):
    """What the groups say."""
    names = {value: name for name, value in guest_filter.numbers(machine).items()}
    name = names.get(number)
    if number == guest_filter.CLONE3:
        return ABSENT
    if name in guest_filter.ABOUT_A_PROCESS.split() and arguments[0] & 0xFFFFFFFF == 1:
        return DENY
    for group in seccomp.GROUPS:
        if name in group.names.split() and group.errno is None:
            masks = [(2**64 - 1 if arg.mask is None else arg.mask, arg) for arg in group.args]
            if all(arguments[arg.index] & mask == arg.value for mask, arg in masks):
                return ALLOW
    return DENY


INTERESTING = [
    0,
    1,
    2,
    17,
    0x541B,
    0x5412,
    0xFFFFFFFF,
    0x1_0000_0001,
    0x1_0000_541B,
    1 << 31,
    0x10000000,
    2**64 - 1,
    0o4001,
]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_is_decided_as_the_groups_say(machine):
    program = confine.program(machine)
    for number in range(1200):
        for value in INTERESTING:
            arguments = [value] * 6
            assert decide(program, number, arguments, MACHINES[machine]) == expected(machine, number, arguments), (
                number,
                value,
            )


@pytest.mark.parametrize("machine", MACHINES)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_conditions_hold_for_any_arguments(machine, data):
    program = confine.program(machine)
    conditional = [entry[0] for entry in guest_filter.table(machine)["conditions"]]
    number = data.draw(st.sampled_from(conditional))
    arguments = data.draw(st.lists(st.sampled_from(INTERESTING) | st.integers(0, 2**64 - 1), min_size=6, max_size=6))
    assert decide(program, number, arguments, MACHINES[machine]) == expected(machine, number, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_and_the_x32_abi_end_the_process(machine):
    program = confine.program(machine)
    assert decide(program, 0, [0] * 6, 0x40000003) == KILL
    assert decide(program, 0x40000000, [0] * 6, MACHINES[machine]) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_no_jump_is_longer_than_a_filter_can_express(machine):
    program = confine.program(machine)
    assert len(program) < 4096
    assert max(max(entry[1:3]) for entry in program) < 256


def test_the_checked_in_table_is_what_the_groups_generate():
    assert guest_filter.PATH.read_text(encoding="utf-8") == guest_filter.render()


def test_every_name_of_the_groups_has_a_number_on_x86_and_arm_lacks_the_old_ones_only():
    names = seccomp.allowed_names()
    assert set(guest_filter.numbers("x86_64")) == names
    missing = names - set(guest_filter.numbers("aarch64"))
    assert {"open", "stat", "fork", "arch_prctl"} <= missing
    assert not missing & {"openat", "read", "clone", "futex", "execve", "prctl", "getrandom", "ppoll"}


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="the filter knows two architectures")
def test_a_process_that_loads_it_can_work_and_can_make_no_socket():
    code = (
        "from rlm_sandbox.guest import confine, linux; import os, socket, subprocess, sys, threading\n"
        "assert confine.load()\n"
        "try: socket.socket(); print('socket')\n"
        "except OSError as exc: print(exc.errno)\n"
        "try: os.kill(1, 0); print('signalled')\n"
        "except OSError as exc: print(exc.errno)\n"
        "print(subprocess.run([sys.executable, '-S', '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout.strip())\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "print(linux.no_new_privs())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(errno.EPERM), str(errno.EPERM), "42", "thread", "1"], done.stderr
