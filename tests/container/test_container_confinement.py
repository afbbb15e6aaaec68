"""Each probe is tried in a session's container, and in a plain one of root's, where it must work: blocked, not broken."""

import errno
import platform

import pytest

from rlm_sandbox.container.profile import MIB, PIDS

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="raw system call numbers below are those of x86_64"),
]

SOCKETS = """
import socket
def attempt(make):
    try:
        made = make()
    except OSError as exc:
        return exc.errno
    for sock in made if isinstance(made, tuple) else (made,):
        sock.close()
    return 0
out = {
    "inet": attempt(lambda: socket.socket(socket.AF_INET)),
    "inet6": attempt(lambda: socket.socket(socket.AF_INET6)),
    "udp": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "unix": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
    "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "alg": attempt(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)),
    "vsock": attempt(lambda: socket.socket(socket.AF_VSOCK)),
    "pair_dgram": attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "pair_seqpacket": attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)),
    "pair_high_bits": call(53, 1, 2 | (1 << 32), 0, (ctypes.c_int * 2)()),
    "pair_dgram_nonblock": call(53, 1, 2 | 0o4000, 0, (ctypes.c_int * 2)()),
}
"""

NOT_EVERYWHERE = {"alg", "vsock", "inet6"}
"""Families that a kernel may be built without; the control then fails with another errno."""


async def test_no_socket_can_be_made_but_a_pair_of_streams(probe, unconfined):
    seen, control = await probe(SOCKETS), unconfined(SOCKETS)
    assert set(seen.values()) == {errno.EPERM}
    assert {name for name, code in control.items() if code} <= NOT_EVERYWHERE


KERNEL = """
buf = ctypes.create_string_buffer(256)
def forked(number, *args):
    pid = os.fork()
    if pid == 0:
        os._exit(call(number, *args))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
out = {
    "unshare_user": forked(272, 0x10000000),
    "unshare_net": forked(272, 0x40000000),
    "setns": forked(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "mount": call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, 0),
    "umount": call(166, b"/tmp", 2),
    "memfd_create": call(319, b"x", 0),
    "keyctl": call(250, 0, -3, 0),
    "userfaultfd": call(323, 1),
    "io_uring_setup": call(425, 1, ctypes.create_string_buffer(256)),
    "ptrace_traceme": forked(101, 0, 0, 0, 0),
    "process_vm_readv": call(310, os.getpid(), buf, 0, buf, 0, 0),
    "syslog": call(103, 10, 0, 0),
    "sethostname": call(170, b"x", 1),
    "setuid": forked(105, 1000),
    "mknod_null": call(133, b"/dev/mknod-probe", 0o020666, 0x103),
    "mkfifo": call(133, b"/dev/fifo-probe", 0o010666, 0),
    "personality": call(135, 0x0040000),
    "shmget": call(29, 0, 4096, 0o1600),
    "msgget": call(68, 0, 0o1600),
    "name_to_handle_at": call(303, -100, b"/", (ctypes.c_int * 40)(128), ctypes.byref(ctypes.c_int()), 0),
}
"""


async def test_the_kernels_dangerous_calls_are_closed(probe, unconfined):
    seen, control = await probe(KERNEL), unconfined(KERNEL)
    assert {name: code for name, code in seen.items() if code != errno.EPERM} == {}
    assert {name: code for name, code in control.items() if code == errno.EPERM} == {}


CLONES = """
SIGCHLD = 17
def clone(flags):
    pid = libc.syscall(56, ctypes.c_long(flags | SIGCHLD), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(0))
    if pid == 0:
        os._exit(0)
    if pid < 0:
        return ctypes.get_errno()
    os.waitpid(pid, 0)
    return 0
names = {"ns": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
         "net": 0x40000000}
out = {name: clone(flag) for name, flag in names.items()}
out["plain"] = clone(0)
out["clone3"] = call(435, 0, 0)
"""


async def test_a_child_gets_no_new_namespace(probe, unconfined):
    seen, control = await probe(CLONES), unconfined(CLONES)
    assert (seen.pop("plain"), seen.pop("clone3")) == (0, errno.ENOSYS)
    assert set(seen.values()) == {errno.EPERM}
    assert control.pop("clone3") == errno.EINVAL
    assert set(control.values()) == {0}


FOREIGN_CALLS = """
import mmap, subprocess, sys
x32 = ctypes.c_long(0x40000000 | 39)
child = os.fork()
if child == 0:
    libc.syscall(x32)
    os._exit(0)
out = {"x32": os.waitpid(child, 0)[1]}
code = bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3])  # mov eax, getpid; int 0x80; ret
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
entry = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
child = os.fork()
if child == 0:
    os._exit(0 if entry() > 0 else 1)
out["i386"] = os.waitpid(child, 0)[1]
"""


async def test_calls_of_another_architecture_end_the_process(probe, unconfined):
    seen, control = await probe(FOREIGN_CALLS), unconfined(FOREIGN_CALLS)
    assert control["i386"] == 0
    assert all(status & 0x7F == 31 for status in seen.values()), "SIGSYS"


TERMINAL = """
master = os.open("/dev/null", os.O_RDWR)  # a container has no terminal at all; what the filter refuses, it refuses for any descriptor
def ioctl(fd, request):
    return call(16, fd, request, ctypes.create_string_buffer(b"x"))
out = {"sti": ioctl(master, 0x5412), "sti_high": ioctl(master, 0x5412 | (1 << 32)), "ficlone": ioctl(master, 0x40049409)}
"""


async def test_nothing_can_be_typed_into_a_terminal(probe):
    assert set((await probe(TERMINAL)).values()) == {errno.EPERM}


FILES = """
def attempt(work):
    try:
        work()
    except OSError as exc:
        return exc.errno
    return 0
def execute():
    with open("/tmp/tool", "wb") as copy, open("/usr/local/bin/python3", "rb") as tool:
        copy.write(tool.read())
    os.chmod("/tmp/tool", 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/tmp/tool", ["/tmp/tool", "-c", ""])
        except OSError as exc:
            os._exit(exc.errno)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise OSError(os.waitstatus_to_exitcode(status), "exec")
def map_executable():
    import mmap
    with open("/tmp/code", "w+b") as code:
        code.write(b"x" * 4096)
        code.flush()
        mmap.mmap(code.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
def write(path):
    def work():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    return work
out = {
    "root": attempt(write("/probe")),
    "usr": attempt(write("/usr/probe")),
    "guest": attempt(write("/opt/rlm/rlm_sandbox/__init__.py")),
    "dev": attempt(write("/dev/probe")),
    "cgroup": attempt(write("/sys/fs/cgroup/probe")),
    "core_pattern": attempt(write("/proc/sys/kernel/core_pattern")),
    "sysrq": attempt(write("/proc/sysrq-trigger")),
    "exec_tmpfs": attempt(execute),
    "map_tmpfs": attempt(map_executable),
    "mqueue": attempt(write("/dev/mqueue/probe")),
}
"""


async def test_nothing_can_be_written_but_scratch_space_and_nothing_executed_from_it(probe):
    seen = await probe(FILES)
    assert seen.pop("sysrq") in {errno.EROFS, errno.EACCES, errno.ENOENT}, "a kernel may be built without it"
    assert set(seen.values()) <= {errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}
    assert seen["exec_tmpfs"] == errno.EACCES
    assert seen["root"] == errno.EROFS


HIDDEN = """
def size(path):
    try:
        with open(path, "rb") as file:
            return len(file.read(64))
    except OSError:
        return 0
paths = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts", "/proc/latency_stats"]
out = {path: size(path) for path in paths}
out["firmware"] = len(os.listdir("/sys/firmware"))
"""


async def test_the_kernels_memory_and_keys_are_hidden(probe, unconfined):
    assert set((await probe(HIDDEN)).values()) == {0}
    assert sum(unconfined(HIDDEN).values()) > 0


async def test_scratch_space_has_an_end_in_bytes_and_in_files(probe):
    out = await probe(
        """
        def fill(path, limit):
            written = 0
            with open(path, "wb") as file:
                while written < limit:
                    try:
                        written += os.write(file.fileno(), b"x" * 1048576)
                    except OSError as exc:
                        return written, exc.errno
            return written, 0
        def count(folder, limit):
            for number in range(limit):
                try:
                    os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))
                except OSError as exc:
                    return number, exc.errno
            return limit, 0
        out = {"tmp": fill("/tmp/a", 1 << 29), "shm": fill("/dev/shm/a", 1 << 28)}
        os.remove("/tmp/a"); os.remove("/dev/shm/a")
        out["tmp_files"] = count("/tmp", 20000)
        out["shm_files"] = count("/dev/shm", 2000)
        """
    )
    assert out["tmp"][0] <= 256 * MIB
    assert out["shm"] == [64 * MIB, errno.ENOSPC]
    assert out["tmp_files"][0] < 16 * 1024
    assert out["tmp_files"][1] == errno.ENOSPC
    assert out["shm_files"][0] < 1024


async def test_processes_have_an_end(probe):
    out = await probe(
        """
        import time
        children, failed = [], 0
        while True:
            try:
                pid = os.fork()
            except OSError as exc:
                failed = exc.errno
                break
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
        out = [len(children), failed]
        for pid in children:
            os.kill(pid, 9)
        """
    )
    assert PIDS - 28 < out[0] < PIDS
    assert out[1] == errno.EAGAIN


async def test_the_limits_of_the_agent_cannot_be_lowered_by_its_children(probe):
    out = await probe(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1024))
        pid = os.fork()
        if pid == 0:
            os._exit(call(302, 1, 7, (ctypes.c_ulong * 2)(0, 0), 0))
        out = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), resource.getrlimit(resource.RLIMIT_NOFILE)]
        """
    )
    assert out == [errno.EPERM, [100, 1024]]


WORKS = r"""
import asyncio, multiprocessing as mp, concurrent.futures as cf, subprocess, sys, threading, tempfile, sqlite3, shutil, socket
def square(x):
    return x * x
def main():
    out = {}
    async def loop():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6*7)", stdin=-1, stdout=-1)
        text, _ = await process.communicate(b"")
        return int(text) + await asyncio.to_thread(square, 2)
    out["asyncio"] = asyncio.run(loop())
    out["subprocess"] = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout
    with mp.get_context("fork").Pool(4) as pool:
        out["fork_pool"] = pool.map(square, range(4))
    with cf.ThreadPoolExecutor(16) as threads:
        out["threads"] = sum(threads.map(square, range(16)))
    with cf.ProcessPoolExecutor(2, mp_context=mp.get_context("fork")) as processes:
        out["process_pool"] = list(processes.map(square, range(3)))
    out["lock"] = mp.Semaphore(1).acquire(timeout=1)
    queue = mp.Queue(); queue.put(5); out["queue"] = queue.get(timeout=5)
    value = mp.Value("i", 3); out["value"] = value.value
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=4096); block.buf[0] = 7; out["shared"] = block.buf[0]
    block.close(); block.unlink()
    with sqlite3.connect("/tmp/x.db") as db:
        db.execute("create table t (a)"); db.execute("insert into t values (1)")
        out["sqlite"] = db.execute("select * from t").fetchall()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x"); file.flush(); shutil.copy2(file.name, "/tmp/copy"); out["copy"] = open("/tmp/copy").read()
    a, b = socket.socketpair(); a.sendall(b"hi"); out["pair"] = b.recv(2).decode()
    a.close(); b.close()
    import hashlib, lzma, bz2, zlib, ssl, decimal, ctypes, uuid, zoneinfo, random
    out["hash"] = hashlib.sha256(b"").hexdigest()[:8]
    return out
"""


async def test_what_an_analysis_needs_keeps_working(probe):
    out = await probe(WORKS + "out = main()")
    assert out == {
        "asyncio": 46,
        "subprocess": "1\n",
        "fork_pool": [0, 1, 4, 9],
        "threads": 1240,
        "process_pool": [0, 1, 4],
        "lock": True,
        "queue": 5,
        "value": 3,
        "shared": 7,
        "sqlite": [[1]],
        "copy": "x",
        "pair": "hi",
        "hash": "e3b0c442",
    }


async def test_processes_can_be_spawned_from_a_module(probe):
    out = await probe(
        """
        import subprocess, sys
        with open("/tmp/work.py", "w") as file:
            file.write(
                "import multiprocessing as mp\\n"
                "def f(x): return x + 1\\n"
                "if __name__ == '__main__':\\n"
                "    with mp.get_context('spawn').Pool(2) as pool: print(pool.map(f, [1, 2]))\\n"
            )
        done = subprocess.run([sys.executable, "/tmp/work.py"], capture_output=True, text=True)
        out = [done.stdout, done.stderr]
        """
    )
    assert out == ["[2, 3]\n", ""]


async def test_the_environment_and_the_network_hold_nothing_of_the_host(probe):
    out = await probe(
        """
        out = {
            "env": sorted(os.environ),
            "net": sorted(os.listdir("/sys/class/net")),
            "resolv": open("/etc/resolv.conf").read(),
            "hosts": open("/etc/hosts").read(),
            "host": os.uname().nodename,
        }
        """
    )
    assert out["env"] == [
        "HOME", "LANG", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH",
        "POLARS_MAX_THREADS", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED",
    ]  # fmt: skip
    assert out["net"] == ["lo"]
    assert (out["resolv"], out["hosts"], out["host"]) == ("", "", "sandbox")


async def test_the_image_holds_no_shell_no_setuid_file_and_nothing_writable(probe):
    out = await probe(
        r"""
        import stat
        found = {"setuid": [], "writable": [], "programs": []}
        for folder, folders, files in os.walk("/"):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev", "/tmp")]
            for name in files:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                if not stat.S_ISREG(info.st_mode):
                    continue
                if info.st_mode & 0o6000:
                    found["setuid"].append(path)
                if info.st_mode & 0o022 or info.st_uid == 65534:
                    found["writable"].append(path)
                if info.st_size and info.st_mode & 0o111 and ".so" not in name:
                    found["programs"].append(path)
        out = found
        """
    )
    assert out["setuid"] == out["writable"] == []
    assert [path for path in out["programs"] if "/bin/python3" not in path] == []
