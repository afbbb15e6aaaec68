"""Where Unix sockets are forbidden, as in a client's sandbox: one line that says so, the setting that mends it, and exit code 3.

The system calls are denied by a seccomp filter of the test's own, with the error that such a sandbox gives.
"""

import ctypes
import json
import platform
import re
import subprocess

import pytest

from tests.support.cli import PROGRAM, Home

pytestmark = pytest.mark.component

SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
EPERM, AF_UNIX = 1, 1
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2


class Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))


def deny_unix_sockets():
    """In the child, before it becomes the command: socket(AF_UNIX, ...) fails with EPERM, all else is allowed."""
    load, equal, give = 0x20, 0x15, 0x06
    code = (Instruction * 6)(
        Instruction(load, 0, 0, 0),  # the number of the system call
        Instruction(equal, 0, 3, SOCKET),
        Instruction(load, 0, 0, 16),  # its first argument
        Instruction(equal, 0, 1, AF_UNIX),
        Instruction(give, 0, 0, 0x00050000 | EPERM),
        Instruction(give, 0, 0, 0x7FFF0000),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(Program(len(code), code)), 0, 0) == 0


@pytest.fixture
def confined(tmp_path):
    if SOCKET is None:
        pytest.skip(f"the number of socket() on {platform.machine()} is not known to this test")
    home = Home(tmp_path / "home")

    def run(*args):
        return subprocess.run(
            [PROGRAM, *args], env=home.env(), input="1", capture_output=True, text=True, preexec_fn=deny_unix_sockets,
            timeout=60, check=False,
        )  # fmt: skip

    yield run
    home.close()


@pytest.mark.parametrize(
    "args", [["list"], ["exec", "-c", "1"], ["start", "--input", "/etc/hostname"], ["stop", "--all"], ["final"], ["run", "q", "--input", "/etc/hostname"]],
    ids=lambda args: args[0],
)  # fmt: skip
def test_the_command_says_which_setting_mends_it(confined, args):
    done = confined(*args)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "prerequisite"
    assert "operation not permitted" in error["message"]
    fix = json.loads(re.search(r"settings\.json: (\{.*?\]\}\})", error["hint"])[1])
    assert fix == {"sandbox": {"excludedCommands": ["rlm-sandbox *"]}}


def test_what_needs_no_socket_works_all_the_same(confined):
    assert confined("skill", "show", "client-settings").returncode == 0
    assert confined("--help").returncode == 0
