"""The agent keeps its promises in the real container: the clock without a host, strays, descriptors, processes."""

import asyncio
import contextlib
import json
import os
import signal

import pytest

from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.session.channel import Channel
from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire import messages as m
from tests.support.cli import docker, eventually

pytestmark = pytest.mark.security

STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException: pass"


def processes(container):
    """Host process ids in a container, the agent's first."""
    with contextlib.suppress(AssertionError):
        rows = docker("top", container, "-o", "pid").split()
        return [int(word) for word in rows[1:]]
    return []


def test_the_clock_of_a_cell_runs_on_while_the_daemon_is_stopped(fresh, log_file):
    started = fresh.start(log_file)
    (container,) = fresh.containers()
    agent, kernel = sorted(processes(container))
    fresh.exec(STUBBORN, "--timeout", "1", "--wait", "0")
    daemon = fresh.daemon
    os.kill(daemon, signal.SIGSTOP)
    try:
        eventually(lambda: kernel not in processes(container), "the interpreter outlived its cell's timeout")
        assert agent in processes(container)
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert fresh.ok("wait", "--wait", "30")["status"] == "kernel_died"
    assert fresh.exec("print(1)", "--session", started["session"])["stdout"] == "1\n"


def test_a_daemon_that_is_killed_while_it_is_stopped_leaves_nothing(fresh, log_file):
    fresh.start(log_file)
    fresh.exec(STUBBORN, "--wait", "0")
    daemon = fresh.daemon
    os.kill(daemon, signal.SIGSTOP)
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: not fresh.containers(), "a container outlived its daemon")


async def test_a_container_ends_at_its_lifetime_when_the_host_says_nothing_more(engine, base, log_file, tmp_path):
    admitted = admit(log_file, stage_dir=tmp_path)
    profile = RunProfile.default().with_limits(memory=128 << 20, cpus=0.5)
    container = await launch(engine, base, profile, admitted, labels={"rlm-sandbox.test": "lifetime"})
    try:
        channel = Channel(container)
        await channel.greet(m.Hello(PROTOCOL_VERSION, "s", 1000, 3000, 1 << 20, []))
        channel.send(m.Go(json.dumps({"session": "s", "input": admitted.config}).encode()))
        left = "label=rlm-sandbox.test=lifetime"
        assert docker("ps", "-q", "--filter", left)
        await asyncio.to_thread(
            eventually, lambda: not docker("ps", "-aq", "--filter", left), "it lives for ever", within=30
        )
    finally:
        await container.close()
        admitted.close()


def test_strays_are_gone_after_the_cell_and_children_live_on(live):
    (container,) = [ident for ident in live.home.containers() if live.ok("status")["container"] == ident]
    before = processes(container)
    done = live.exec("""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(600)
        os._exit(0)
    os.wait()
""")
    assert done["status"] == "ok"
    eventually(
        lambda: len(processes(container)) == len(before) + 1, "a stray is left, or the interpreter's child is not"
    )
    assert live.exec("child.kill(); print(child.wait())")["stdout"] == "-9\n"
    eventually(lambda: sorted(processes(container)) == sorted(before), "the child is left")


def test_a_cell_that_leaves_more_than_half_the_processes_behind_loses_them(cli, log_file):
    with cli.session(log_file, "--memory", "256m", "--pids", "128") as started:
        named = ("--session", started["session"])
        done = cli.exec(
            """
import os, signal
made = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError:
    print(made)
""",
            *named,
        )
        assert int(done["stdout"]) > 64
        assert (
            cli.exec("import subprocess, sys; print(subprocess.run([sys.executable, '-c', '1']).returncode)", *named)[
                "stdout"
            ]
            == "0\n"
        )
        container = cli.ok("status", *named)["container"]
        eventually(lambda: len(processes(container)) == 2, "processes of the bomb are left")


def test_worker_processes_are_forked_whatever_the_version_of_python(live):
    done = live.exec("""
import multiprocessing
print(multiprocessing.get_start_method())
def square(number): return number * number
with multiprocessing.Pool(2) as pool: print(pool.map(square, [1, 2, 3]))
""")
    assert done["stdout"] == "fork\n[1, 4, 9]\n"


DESCRIPTORS = """
import os, stat
def kinds():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            mode = os.fstat(int(name)).st_mode
        except OSError:
            continue
        found[int(name)] = "pipe" if stat.S_ISFIFO(mode) else os.readlink(f"/proc/self/fd/{name}")
    return found
"""


def test_the_interpreter_holds_its_own_pipes_and_the_input_and_nothing_else(cli, log_file):
    with cli.session(log_file) as started:
        done = cli.exec(DESCRIPTORS + "print(sorted(kinds().items()))", "--session", started["session"])
    held = dict(eval(done["stdout"]))  # our own cell's output
    assert [held.pop(number) for number in range(3)] == ["/dev/null", "pipe", "pipe"]
    assert [held.pop(number) for number in sorted(held)[-4:]] == ["pipe"] * 4
    assert set(held.values()) <= {"/input/app.log"}, held


def test_a_program_that_a_cell_starts_inherits_the_three_streams_only(live):
    done = live.exec("""
import subprocess, sys
code = "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, close_fds=False).stdout)
""")
    assert len(eval(done["stdout"])) == 4, "0, 1, 2 and the listing's own"


def test_the_agent_cannot_be_looked_into_signalled_limited_or_reniced(live):
    done = live.exec("""
import os, resource, signal
tried = {}
def attempt(name, work):
    try:
        tried[name] = work() or "done"
    except OSError as exc:
        tried[name] = type(exc).__name__
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("mem", lambda: open("/proc/1/mem", "rb").read(1))
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("fd", lambda: os.listdir("/proc/1/fd"))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("oom", lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
attempt("limits", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt("pidfd", lambda: os.pidfd_open(1) and signal.pidfd_send_signal(os.pidfd_open(1), signal.SIGSTOP))
for number in range(1, 65):
    try:
        os.kill(1, number)
    except OSError:
        pass
print(tried)
""")
    tried = eval(done["stdout"])
    assert tried.pop("pidfd") in {"done", "PermissionError"}, "delivered or not, a signal to process 1 has no effect"
    assert set(tried.values()) == {"PermissionError"}, tried
    assert live.exec("print('alive')")["stdout"] == "alive\n"
