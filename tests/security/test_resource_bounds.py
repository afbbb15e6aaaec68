"""Every bound of a session is hit, its error is what docs/limits.md says, and a session beside it keeps working."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import docker

pytestmark = pytest.mark.security

MIB = 1 << 20


@pytest.fixture(scope="module")
def honest(cli, log_file):
    """Another session on the same daemon."""
    with cli.session(log_file, "--session", "neighbour", "--memory", "256m") as started:
        yield started["session"]


@pytest.fixture(scope="module")
def works(cli, honest):
    def ask():
        done = cli.exec(
            "from pathlib import Path\nPath('/tmp/mine').write_text('x')\n"
            "print(len(grep('ERROR')), llm_query('well?') != '', Path('/tmp/mine').read_text())",
            "--session", honest,
        )  # fmt: skip
        return done["stdout"] == "2 True x\n"

    return ask


@pytest.fixture(scope="module")
def small(cli, log_file):
    """A session whose every bound is a small one."""
    bounds = (
        "--memory", "128m", "--cpus", "0.5", "--pids", "24", "--tmpfs", "4m", "--tmpfs-files", "100", "--shm", "2m",
        "--open-files", "80", "--output-max", "1m",
    )  # fmt: skip
    with cli.session(log_file, *bounds) as started:
        yield lambda code, *args, **options: cli.exec(code, "--session", started["session"], *args, **options)


FILL = """
import os
def fill(path, limit):
    written = 0
    try:
        with open(path, "wb", buffering=0) as out:
            while written < limit: written += out.write(bytes(65536))
    except OSError as exc:
        print(exc.strerror, written)
    finally:
        os.unlink(path)
"""


def test_memory(small, works):
    done = small("hog = []\nwhile True: hog.append(bytearray(1 << 20))")
    assert done["status"] == "kernel_died"
    assert "out of memory" in done["error"]
    assert works()
    assert small("print('again')")["stdout"] == "again\n"


def test_memory_taken_by_a_child(small, works):
    done = small(
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'x = bytearray(1 << 28)']).returncode)"
    )
    assert (done["status"], done["stdout"]) in [("ok", "-9\n"), ("kernel_died", "")]
    assert works()
    assert small("print('again')")["stdout"] == "again\n"


def test_processors(small, works):
    """Half a processor: a busy cell gets half of the wall time, and all of its processes together."""
    done = small(
        """
import os, time
began, children = time.monotonic(), []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() - began < 2: pass
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
usage = os.times()
print((usage.children_user + usage.children_system) / (time.monotonic() - began))
""",
        "--timeout",
        "60",
    )
    assert float(done["stdout"]) < 0.75, "half, and the slack of a few periods"
    assert works()


def test_processes_and_threads(small, works):
    done = small("""
import os, signal, threading
made = []
try:
    while len(made) < 500:
        pid = os.fork()
        if not pid: signal.pause()
        made.append(pid)
except OSError as exc:
    print(exc.strerror, len(made))
for pid in made:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
threads, stop = [], threading.Event()
try:
    while len(threads) < 500:
        threads.append(threading.Thread(target=stop.wait))
        threads[-1].start()
except RuntimeError as exc:
    print(exc, len(threads))
stop.set()
""")
    forks, threads = done["stdout"].splitlines()
    assert forks.startswith("Resource temporarily unavailable")
    assert threads.startswith("can't start new thread")
    assert all(10 < int(line.split()[-1]) < 24 for line in (forks, threads))
    assert works()
    assert small("print('again')")["stdout"] == "again\n"


def test_scratch_space_in_bytes_is_also_the_most_of_one_file(small, works):
    done = small(FILL + "fill('/tmp/big', 1 << 30)")
    reason, written = done["stdout"].rsplit(" ", 1)
    assert reason in {"No space left on device", "File too large"}
    assert int(written) <= 4 * MIB
    assert works()
    done = small("import os\nfd = os.open('/tmp/sparse', os.O_CREAT | os.O_RDWR)\ntry:\n    os.ftruncate(fd, 1 << 40)\n"
                 "except OSError as exc: print(exc.strerror)\nos.close(fd); os.unlink('/tmp/sparse')")  # fmt: skip
    assert done["stdout"] == "File too large\n"


def test_scratch_space_in_files(small, works):
    done = small("""
import os
os.mkdir('/tmp/many')
made = 0
try:
    while made < 5000:
        os.close(os.open(f'/tmp/many/{made}', os.O_CREAT | os.O_WRONLY)); made += 1
except OSError as exc: print(exc.strerror, made)
for name in os.listdir('/tmp/many'): os.unlink(f'/tmp/many/{name}')
os.rmdir('/tmp/many')
""")
    reason, made = done["stdout"].rsplit(" ", 1)
    assert reason == "No space left on device"
    assert int(made) < 100
    assert works()


def test_shared_memory(small, works):
    done = small(FILL + "fill('/dev/shm/big', 1 << 30)")
    reason, written = done["stdout"].rsplit(" ", 1)
    assert (reason, int(written)) == ("No space left on device", 2 * MIB)
    assert works()


def test_open_files(small, works):
    done = small("""
import os
held = []
try:
    while len(held) < 5000: held.append(os.dup(1))
except OSError as exc: print(exc.strerror, len(held))
for fd in held: os.close(fd)
""")
    reason, held = done["stdout"].rsplit(" ", 1)
    assert reason == "Too many open files"
    assert int(held) < 80
    assert works()


def test_kept_output(small, works):
    done = small("for _ in range(64): print('x' * 65535)")
    assert done["status"] == "ok"
    assert any("bytes of output were over the limit and not kept" in text for text in done["warnings"])
    assert Path(done["stdout_full_path"]).stat().st_size <= MIB
    assert works()


def test_time_of_a_cell(small, works):
    assert small("while True: pass", "--timeout", "0.5")["status"] == "timeout"
    assert works()


def test_time_of_a_session(cli, log_file, works):
    started = cli.start(log_file, "--time-limit", "2", "--memory", "128m")
    result = cli("exec", "--session", started["session"], "--timeout", "60", stdin="import time; time.sleep(60)")
    assert (result.code, result.error["kind"]) == (9, "timeout")
    assert "time limit" in result.error["message"]
    assert works()


def test_sessions_of_a_host(fresh, log_file):
    fresh.path.mkdir(parents=True)
    (fresh.path / "policy.toml").write_text("max_sessions = 2\n")
    first = fresh.start(log_file, "--memory", "128m")
    fresh.start(log_file, "--memory", "128m")
    refused = fresh("start", "--input", str(log_file), "--provider", "scripted")
    assert (refused.code, refused.error["kind"]) == (5, "policy")
    assert "2 sessions" in refused.error["message"]
    assert fresh.exec("print(1)", "--session", first["session"])["stdout"] == "1\n"
    fresh.ok("stop", "--session", first["session"])
    assert fresh.start(log_file, "--memory", "128m")


@pytest.mark.parametrize(
    ("flag", "value", "policy"),
    [
        ("--memory", "1g", "max_memory = '512m'"),
        ("--cpus", "1", "max_cpus = 0.5"),
        ("--pids", "200", "max_pids = 100"),
        ("--tmpfs", "100m", "max_tmpfs = '50m'"),
        ("--tmpfs-files", "2000", "max_tmpfs_files = 1000"),
        ("--shm", "100m", "max_shm = '50m'"),
        ("--open-files", "2000", "max_open_files = 1000"),
        ("--output-max", "100m", "max_output = '50m'"),
        ("--cell-timeout", "100", "max_cell_timeout = 50"),
        ("--time-limit", "100", "max_session_time = 50"),
    ],
)
def test_no_flag_exceeds_the_policy(fresh, log_file, flag, value, policy):
    fresh.path.mkdir(parents=True)
    (fresh.path / "policy.toml").write_text(policy + "\n")
    refused = fresh("start", "--input", str(log_file), "--provider", "scripted", flag, value)
    assert (refused.code, refused.error["kind"]) == (5, "policy")
    assert flag in refused.error["message"]


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(pid):
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def engine_disk():
    """Bytes below the engine's data folder, or of what the engine itself accounts for where that cannot be read."""
    root = docker("info", "--format", "{{.DockerRootDir}}").strip()
    if os.access(root, os.R_OK):
        return int(subprocess.run(["du", "-sxb", root], capture_output=True, text=True, check=False).stdout.split()[0])
    pytest.skip("the engine's disk is not this user's to look at")


FLOODS = {
    "a gibibyte of output": ("import os\nblock = b'x' * (1 << 20)\nfor _ in range(1024): os.write(1, block)", 1 << 30),
    "a flood of stderr": ("import os\nblock = b'e' * (1 << 20)\nfor _ in range(256): os.write(2, block)", 1 << 28),
    "one line of a hundred megabytes": ("print('x' * 100_000_000)", 100_000_001),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_output_costs_the_host_neither_memory_nor_disk(fresh, log_file, name):
    code, size = FLOODS[name]
    started = fresh.start(log_file)
    fresh.exec("print('x' * 5000)")  # what is loaded and opened once
    daemon = fresh.daemon
    before, disk = resident(daemon), engine_disk()
    done = fresh.exec(code, "--timeout", "120", "--wait", "120")
    assert done["status"] == "ok"
    assert peak(daemon) - before < 100 * MIB
    assert engine_disk() - disk < 50 * MIB
    kept = Path(done["stdout_full_path"]).stat().st_size
    assert kept <= 64 * MIB
    assert (done["stdout_len"], any("not kept" in text for text in done["warnings"])) == (min(size, 64 * MIB), True)
    assert len(done["stdout"]) < 2200
    assert fresh.exec("print(1)", "--session", started["session"])["stdout"] == "1\n"


def test_beside_a_fork_bomb_another_session_starts_and_works(cli, log_file):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    started = cli.start(log_file, "--memory", "256m", "--cpus", "1", "--pids", "128")
    cli.exec(bomb, "--session", started["session"], "--wait", "1", "--timeout", "60")
    with cli.session(log_file, "--memory", "128m") as other:
        done = cli.exec(
            "import subprocess, sys; print(subprocess.run([sys.executable, '-c', '1']).returncode)",
            "--session",
            other["session"],
        )
        assert done["stdout"] == "0\n"
    container = cli.ok("status", "--session", started["session"])["container"]
    pids = [int(word) for word in docker("top", container, "-o", "pid").split()[1:]]
    assert len(pids) <= 640
    cli.ok("stop", "--session", started["session"])
    assert not [
        pid for pid in pids if Path(f"/proc/{pid}").exists() and b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_what_the_kernel_counts_for_each_user_is_no_other_sessions(cli, log_file):
    """Pages in pipes, watches of epoll, queued signals: a session that has all of its user's leaves the next one its own."""
    hog = """
import fcntl, os
kept, sizes = [], set()
for _ in range(60):
    if not os.fork():
        import signal
        kept = [os.pipe() for _ in range(400)]
        sizes = {fcntl.fcntl(write, fcntl.F_GETPIPE_SZ) for _, write in kept}
        os.write(1, f"{min(sizes)}\\n".encode())
        signal.pause()
import time; time.sleep(2)
"""
    ask = "import fcntl, os; print(os.getuid(), fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ))"
    with cli.session(log_file) as one, cli.session(log_file) as other:
        user, size = cli.exec(ask, "--session", other["session"])["stdout"].split()
        sizes = cli.exec(hog, "--session", one["session"])["stdout"].split()
        assert int(size) > min(map(int, sizes)), "the hog got less and less"
        again = cli.exec(ask, "--session", other["session"])["stdout"].split()
        assert again == [user, size]
        assert cli.exec("import os; print(os.getuid())", "--session", one["session"])["stdout"] != f"{user}\n"


def test_no_session_takes_the_hosts_pseudo_terminals(cli, log_file):
    with cli.session(log_file) as one:
        done = cli.exec("import os\nos.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)", "--session", one["session"])
        assert (done["status"], "No such file" in done["error"]) == ("error", True)
