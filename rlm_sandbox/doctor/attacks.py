"""Attacks, as code that runs in a session: each function tries one thing and tells whether it got through.

This file is sent as a cell, whole, followed by a call of :func:`attack`; so it uses the standard library only and imports what it needs
where it needs it. The same source runs in an unprotected container as the control: an attack that fails there too proves nothing.
``True`` means breached. Nothing here does harm beyond the container it runs in.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import socket
import stat
import subprocess
import sys
from collections.abc import Callable  # noqa: TC003 - annotations of module variables are read here
from pathlib import Path

Verdict = tuple[bool, str]
ATTACKS: dict[str, Callable[[], Verdict]] = {}

_ARM = platform.machine() == "aarch64"
_NUMBERS = {  # x86-64, arm64
    "ptrace": (101, 117),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mknodat": (259, 33),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "process_vm_readv": (310, 270),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "personality": (135, 92),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "open_by_handle_at": (304, 265),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "clone3": (435, 435),
}
_CLONE_NEWUSER = 0x10000000


def _register(name: str) -> Callable[[Callable[[], Verdict]], Callable[[], Verdict]]:
    def keep(function: Callable[[], Verdict]) -> Callable[[], Verdict]:
        ATTACKS[name] = function
        return function

    return keep


def attack(name: str) -> None:
    """Run one attack and print its verdict as a line of JSON."""
    try:
        breached, seen = ATTACKS[name]()
    except OSError as exc:
        breached, seen = False, errno.errorcode.get(exc.errno or 0, str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever stops an attack, it was stopped
        breached, seen = False, type(exc).__name__
    print(json.dumps({"attack": name, "breached": breached, "seen": seen[:120]}), flush=True)  # noqa: T201 - the verdict


def _syscall(name: str, *arguments: object) -> Verdict:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(_NUMBERS[name][_ARM]), *arguments)
    if result >= 0:
        return True, f"returned {result}"
    return False, errno.errorcode.get(ctypes.get_errno(), "?")


def _socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> Verdict:
    with socket.socket(family, kind, protocol):
        return True, "socket created"


def _write(path: str, data: bytes = b"x") -> Verdict:
    with open(path, "ab") as stream:  # noqa: PTH123 - exactly the call
        stream.write(data)
    return True, f"wrote {path}"


@_register("tcp")
def _tcp() -> Verdict:
    return _socket(socket.AF_INET)


@_register("tcp6")
def _tcp6() -> Verdict:
    return _socket(socket.AF_INET6)


@_register("udp to a name server")
def _udp() -> Verdict:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", 53))
        out.send(b"\0" * 12)
    return True, "datagram sent"


@_register("name resolution")
def _resolve() -> Verdict:
    return bool(socket.getaddrinfo("localhost", 80)), "resolved"


@_register("metadata address")
def _metadata() -> Verdict:
    with socket.socket() as out:
        out.settimeout(0.3)
        try:
            out.connect(("169.254.169.254", 80))
        except TimeoutError:
            return True, "packets left"
    return True, "connected"


@_register("unix socket")
def _unix() -> Verdict:
    return _socket(socket.AF_UNIX)


@_register("unix datagram by socketpair")
def _pair() -> Verdict:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        try:
            one.sendto(b"x", "/nonexistent/socket")
        except FileNotFoundError:
            return True, "the address was looked up"
    return True, "sent"


@_register("netlink")
def _netlink() -> Verdict:
    return _socket(socket.AF_NETLINK, socket.SOCK_RAW)


@_register("packet socket")
def _packet() -> Verdict:
    return _socket(socket.AF_PACKET, socket.SOCK_RAW)


@_register("vsock")
def _vsock() -> Verdict:
    return _socket(40)


@_register("kernel crypto socket")
def _alg() -> Verdict:
    return _socket(38, socket.SOCK_SEQPACKET)


@_register("io_uring")
def _io_uring() -> Verdict:
    return _syscall("io_uring_setup", ctypes.c_uint(1), ctypes.create_string_buffer(120))


@_register("network interfaces")
def _interfaces() -> Verdict:
    names = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    others = [name for name in names if name != "lo"]
    return bool(others), ", ".join(names)


@_register("mount")
def _mount() -> Verdict:
    return _syscall("mount", b"none", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)


@_register("remount the root writable")
def _remount() -> Verdict:
    return _syscall("mount", None, b"/", None, ctypes.c_ulong(0x20), None)


@_register("new mount api")
def _fsopen() -> Verdict:
    return _syscall("fsopen", b"tmpfs", ctypes.c_uint(0))


@_register("user namespace by unshare")
def _unshare() -> Verdict:
    pid = os.fork()
    if not pid:
        os._exit(0 if _syscall("unshare", ctypes.c_int(_CLONE_NEWUSER))[0] else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code == 0, "entered" if code == 0 else "refused"


@_register("setns")
def _setns() -> Verdict:
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    return _syscall("setns", ctypes.c_int(descriptor), ctypes.c_int(0))


@_register("chroot")
def _chroot() -> Verdict:
    pid = os.fork()
    if not pid:
        os._exit(0 if _syscall("chroot", b"/tmp")[0] else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code == 0, "done" if code == 0 else "refused"


@_register("ptrace of process 1")
def _ptrace() -> Verdict:
    return _syscall("ptrace", ctypes.c_long(0x4206), ctypes.c_long(1), None, None)


@_register("memory of process 1")
def _vm_read() -> Verdict:
    with open("/proc/1/mem", "rb"):  # noqa: PTH123 - exactly the call
        return True, "opened"


@_register("environment of process 1")
def _environ() -> Verdict:
    return True, f"{len(Path('/proc/1/environ').read_bytes())} bytes read"


@_register("descriptors of process 1")
def _descriptors() -> Verdict:
    return True, ", ".join(os.listdir("/proc/1/fd"))  # noqa: PTH208 - exactly the call


@_register("kill process 1")
def _kill() -> Verdict:
    import signal  # noqa: PLC0415 - see the module's docstring
    import time  # noqa: PLC0415

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL, signal.SIGCHLD):
        with contextlib.suppress(PermissionError):
            os.kill(1, number)
    time.sleep(0.2)
    return False, "still alive"


@_register("bpf")
def _bpf() -> Verdict:
    attributes = ctypes.create_string_buffer(b"\x02\0\0\0\x04\0\0\0\x04\0\0\0\x01\0\0\0", 120)
    return _syscall("bpf", ctypes.c_int(0), attributes, ctypes.c_uint(120))


@_register("perf_event_open")
def _perf() -> Verdict:
    attributes = ctypes.create_string_buffer(b"\x01\0\0\0\x70\0\0\0", 112)
    return _syscall(
        "perf_event_open", attributes, ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_int(-1), ctypes.c_ulong(0)
    )


@_register("userfaultfd")
def _userfaultfd() -> Verdict:
    return _syscall("userfaultfd", ctypes.c_int(1))


@_register("kernel keyring")
def _keyctl() -> Verdict:
    return _syscall("keyctl", ctypes.c_int(0), ctypes.c_int(-3), ctypes.c_int(1))


@_register("device node")
def _mknod() -> Verdict:
    os.mknod("/tmp/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))  # noqa: S108
    return True, "created"


@_register("setuid program")
def _setuid() -> Verdict:
    found = []
    for folder in ("/usr", "/bin", "/sbin", "/opt", "/lib", "/lib64"):
        for root, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    if os.lstat(os.path.join(root, name)).st_mode & 0o6000:  # noqa: PTH118 - a walk over all
                        found.append(name)
    return bool(found), ", ".join(found[:5]) or "none in the image"


@_register("capabilities")
def _capabilities() -> Verdict:
    values = _status()
    masks = {name: values[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(values[name], 16)}
    return bool(masks), str(masks or "all zero")


@_register("new privileges")
def _privileges() -> Verdict:
    get_no_new_privs = 39
    value = _status().get("NoNewPrivs") or str(ctypes.CDLL(None).prctl(get_no_new_privs, 0, 0, 0, 0))
    return value != "1", f"NoNewPrivs {value}"


@_register("seccomp off")
def _seccomp() -> Verdict:
    value = _status().get("Seccomp", "?")
    return value != "2", f"Seccomp {value}"


@_register("root user")
def _root() -> Verdict:
    return os.getuid() == 0, f"uid {os.getuid()}"


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@_register("write core_pattern")
def _core_pattern() -> Verdict:
    with open("/proc/sys/kernel/core_pattern", "r+b") as stream:  # noqa: PTH123 - exactly the call
        return True, f"opened for writing: {stream.name}"


@_register("write sysrq")
def _sysrq() -> Verdict:
    with open("/proc/sysrq-trigger", "wb"):  # noqa: PTH123 - exactly the call; opened, nothing written
        return True, "opened for writing"


@_register("read kernel memory")
def _kcore() -> Verdict:
    with open("/proc/kcore", "rb") as stream:  # noqa: PTH123 - exactly the call
        return bool(stream.read(4)), "read"


@_register("write to /")
def _write_root() -> Verdict:
    return _write("/rlm-attack")


@_register("write to /usr")
def _write_usr() -> Verdict:
    return _write("/usr/rlm-attack")


@_register("write to the input")
def _write_input() -> Verdict:
    for root, _, names in os.walk("/input"):
        for name in names:
            return _write(os.path.join(root, name))  # noqa: PTH118 - a walk
    return False, "no input"


@_register("new file in the input")
def _new_input() -> Verdict:
    return _write("/input/rlm-attack")


@_register("docker socket")
def _docker_socket() -> Verdict:
    found = [
        path
        for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
        if Path(path).exists()
    ]
    return bool(found), ", ".join(found) or "absent"


@_register("run a file from /tmp")
def _run_tmp() -> Verdict:
    path = Path("/tmp/rlm-program")  # noqa: S108
    path.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    path.chmod(0o755)
    subprocess.run([str(path), "-c", "1"], capture_output=True, check=False)  # noqa: S603 - the attack
    return True, "started"


@_register("run a file from memory")
def _run_memory() -> Verdict:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(ctypes.c_long(_NUMBERS["memfd_create"][_ARM]), b"x", ctypes.c_uint(0))
    if descriptor < 0:
        return False, errno.errorcode.get(ctypes.get_errno(), "?")
    os.write(descriptor, Path(os.path.realpath(sys.executable)).read_bytes())
    subprocess.run([f"/proc/self/fd/{descriptor}", "-c", "1"], pass_fds=[descriptor], capture_output=True, check=False)  # noqa: S603
    return True, "started"


@_register("a shell")
def _shell() -> Verdict:
    found = [
        path for path in ("/bin/sh", "/bin/bash", "/bin/busybox", "/usr/bin/apt", "/usr/bin/pip") if Path(path).exists()
    ]
    return bool(found), ", ".join(found) or "none in the image"


@_register("a key in the environment")
def _keys() -> Verdict:
    blobs = [json.dumps(dict(os.environ))]
    for path in ("/proc/self/environ", "/proc/1/environ"):
        with contextlib.suppress(OSError):
            blobs.append(Path(path).read_bytes().decode("latin-1"))
    words = ("API_KEY", "sk-ant", "sk-proj", "AWS_SECRET", "_TOKEN")
    found = [word for word in words if any(word in blob for blob in blobs)]
    return bool(found), ", ".join(found) or "none"


@_register("fork bomb")
def _fork_bomb() -> Verdict:
    limit, made = 2000, 0
    import signal  # noqa: PLC0415 - see the module's docstring

    children = []
    try:
        while made < limit:
            pid = os.fork()
            if not pid:
                signal.pause()
                os._exit(0)
            children.append(pid)
            made += 1
    except OSError as exc:
        return False, f"{errno.errorcode.get(exc.errno or 0)} after {made} processes"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return True, f"{made} processes"


@_register("fill the scratch space")
def _fill() -> Verdict:
    written, limit, block = 0, 2**30, b"\0" * 2**20
    path = Path("/tmp/rlm-fill")  # noqa: S108
    try:
        with path.open("wb", buffering=0) as stream:
            while written < limit:
                written += stream.write(block)
    except OSError as exc:
        return False, f"{errno.errorcode.get(exc.errno or 0)} after {written >> 20} MiB"
    finally:
        path.unlink(missing_ok=True)
    return True, f"{written >> 20} MiB written"


@_register("fill the scratch space with files")
def _inodes() -> Verdict:
    made, limit = 0, 40_000
    folder = Path("/tmp/rlm-files")  # noqa: S108
    folder.mkdir()
    try:
        while made < limit:
            (folder / str(made)).touch()
            made += 1
    except OSError as exc:
        return False, f"{errno.errorcode.get(exc.errno or 0)} after {made} files"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return True, f"{made} files"


@_register("open files")
def _open_files() -> Verdict:
    opened: list[int] = []
    limit = 3_000
    try:
        while len(opened) < limit:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as exc:
        return False, f"{errno.errorcode.get(exc.errno or 0)} after {len(opened)}"
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True, f"{len(opened)} open"
