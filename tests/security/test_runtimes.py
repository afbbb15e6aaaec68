"""A stronger runtime is used when it is named, proven to hold, and never replaced by a weaker one."""

import json
from pathlib import Path

import pytest

from rlm_sandbox.container.engine import Engine
from rlm_sandbox.errors import RLMError
from tests.support.cli import docker

pytestmark = pytest.mark.security


def has_runsc():
    try:
        return "runsc" in Engine.connect().info().runtimes
    except RLMError:
        return False


needs_runsc = pytest.mark.skipif(
    not has_runsc(), reason="the engine has no runtime runsc (scripts/runsc.sh installs it as root on Debian 12)"
)


@pytest.fixture(scope="module")
def guarded(cli, log_file):
    with cli.session(log_file, "--runtime", "runsc", "--memory", "512m") as started:
        assert started["runtime"] == "runsc"
        yield lambda code, *args: cli.exec(code, "--session", started["session"], *args)


@pytest.mark.parametrize("name", ["kata", "runsc-of-nobody", "../runc", "-v", "no such", "\x1b[31m"])
def test_a_runtime_that_the_engine_does_not_have_is_refused_and_nothing_takes_its_place(cli, log_file, name):
    before = set(cli.containers())
    result = cli("start", "--input", str(log_file), "--provider", "scripted", f"--runtime={name}")
    assert result.code in {2, 3}, result
    assert "runtime" in result.error["message"] or "engine" in result.error["message"]
    assert len(result.err.splitlines()) == 1
    assert "\x1b" not in result.text + result.err
    assert set(cli.containers()) == before


@needs_runsc
def test_a_session_under_gvisor_works(guarded):
    done = guarded("print(open('/proc/version').read()[:20], len(grep('ERROR')), llm_query('well?') != '')")
    assert done["stdout"] == "Linux version 4.4.0  2 True\n"
    assert guarded("FINAL('done')")["final"]["kind"] == "direct"


@needs_runsc
def test_the_engine_runs_it_with_the_runtime_that_was_named(cli, log_file):
    with cli.session(log_file, "--runtime", "runsc", "--memory", "256m") as started:
        container = cli.ok("status", "--session", started["session"])["container"]
        facts = json.loads(docker("inspect", container))[0]
    assert facts["HostConfig"]["Runtime"] == "runsc"
    assert facts["HostConfig"]["NetworkMode"] == "none"


@needs_runsc
def test_what_an_analysis_needs_works_under_gvisor_too(guarded):
    done = guarded("""
import asyncio, multiprocessing, sqlite3, subprocess, sys, threading
def square(number): return number * number
with multiprocessing.Pool(2) as pool: print(pool.map(square, [1, 2, 3]))
print(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout.strip())
async def wait(): return await asyncio.to_thread(square, 5)
print(asyncio.run(wait()))
with sqlite3.connect('/tmp/x.db') as db: print(db.execute('select 6 * 7').fetchone())
""")
    assert done["stdout"] == "[1, 4, 9]\n1\n25\n(42,)\n", done["error"]


@needs_runsc
def test_an_interpreter_that_is_gone_is_replaced_under_gvisor(guarded):
    assert guarded("import os; os._exit(3)")["status"] == "kernel_died"
    assert guarded("while True: pass", "--timeout", "1")["status"] in {"timeout", "kernel_died"}
    done = guarded("hog = []\nwhile True: hog.append(bytearray(1 << 20))", "--timeout", "60")
    assert done["status"] == "kernel_died"
    assert "memory" in done["error"]
    assert guarded("print('again')")["stdout"] == "again\n"


SOCKET = """
import os, socket
for family in range(50):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind).close()
            print('made', family, kind)
        except OSError: pass
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try:
        socket.socketpair(socket.AF_UNIX, kind)
        print('pair', kind)
    except OSError: pass
print(sorted(os.listdir('/sys/class/net')) if os.path.isdir('/sys/class/net') else 'none')
"""


@needs_runsc
def test_no_socket_of_any_family_can_be_made_under_gvisor(guarded):
    assert guarded(SOCKET)["stdout"] in {"['lo']\n", "none\n"}


@needs_runsc
def test_a_socket_file_in_the_input_cannot_be_reached_under_gvisor(cli, tmp_path):
    """A bound directory may hold the socket of a service of the host."""
    import socket  # noqa: PLC0415 - only here

    (tmp_path / "in").mkdir(mode=0o755)
    (tmp_path / "in" / "data.txt").write_text("x")
    tmp_path.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    path = tmp_path / "in" / "s"
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(0.2)
    path.chmod(0o777)
    code = """
import socket
a, b = socket.socketpair()
for how in (lambda: socket.socket(socket.AF_UNIX).connect('/input/s'), lambda: a.connect('/input/s'),
            lambda: a.sendto(b'x', '/input/s')):
    try: how(); print('reached')
    except OSError as exc: print('refused')
"""
    result = cli("start", "--input", str(tmp_path / "in"), "--bind", "--runtime", "runsc", "--provider", "scripted")
    if result.code:
        assert result.error["kind"] == "input", result
    else:
        session = result.doc["session"]
        try:
            assert cli.exec(code, "--session", session)["stdout"] == "refused\n" * 3
        finally:
            cli.ok("stop", "--session", session)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


@needs_runsc
def test_a_directory_is_staged_and_read_under_gvisor(cli, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.md").write_text(f"text {number}\n")
    (folder / ".env").write_text("SECRET=1\n")
    with cli.session(folder, "--runtime", "runsc", "--memory", "256m") as started:
        done = cli.exec("print(sorted(files), 'SECRET' in context)", "--session", started["session"])
    assert done["stdout"] == "['0.md', '1.md', '2.md'] False\n"


@needs_runsc
def test_the_deep_check_finds_nothing_that_got_through_under_gvisor(cli):
    done = cli("doctor", "--deep", "--runtime", "runsc", "--json", timeout=200)
    assert done.code == 0, done.err
    assert done.doc["breached"] == []
    assert {"fork bomb", "memory bomb", "tcp", "kernel keyring"} <= {row["attack"] for row in done.doc["attacks"]}


@needs_runsc
def test_the_limits_of_the_engine_hold_for_gvisor_or_the_user_is_told(cli, log_file):
    with cli.session(log_file, "--runtime", "runsc", "--memory", "256m") as started:
        container = cli.ok("status", "--session", started["session"])["container"]
        pid = json.loads(docker("inspect", container))[0]["State"]["Pid"]
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        told = any("watches memory" in text for text in started["warnings"])
        assert (container in groups) is not told, (groups, started["warnings"])
