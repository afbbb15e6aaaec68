"""The agent against kernels that crash, hang, flood and forge: the session ends or goes on, and always says which."""

import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameError
from tests.support.guest_driver import LAUNCH, PYTHON, Guest, GuestGone

pytestmark = pytest.mark.component


@pytest.fixture
def guest():
    with Guest(grace_ms=500) as fresh:
        yield fresh


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone_within(seconds: float, *pids: int) -> bool:
    """Wait for processes to end; a bound on patience, not an expectation of speed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def raw_agent():
    return subprocess.Popen(
        [PYTHON, "-I", "-c", LAUNCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_guest_is_silent_until_the_hello_and_ends_with_its_input():
    agent = raw_agent()
    out, err = agent.communicate(b"", timeout=30)
    assert (out, err, agent.returncode) == (b"", b"", 0)


HELLO = m.Hello(protocol=PROTOCOL_VERSION, session="s", grace_ms=100, lifetime_ms=60_000, output_max=100, sample=[])


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 8,
        struct.pack(">II", 0xFFFFFFFF, 0),
        m.Go(payload=b"{}").encode(),
        HELLO.encode() + HELLO.encode(),
        HELLO.encode() + m.CellBegin(cell=1, timeout_ms=1).encode(),
        HELLO.encode() + m.Go(payload=b"{}").encode() + b"GET / HTTP/1.1\r\n",
        struct.pack(">II", 60_000, 0) + b"[" * 60_000,
    ],
    ids=["junk", "giant", "go first", "two hellos", "cell before go", "http", "deep"],
)
def test_a_host_that_breaks_the_grammar_ends_the_container(raw):
    agent = raw_agent()
    agent.stdin.write(raw)
    agent.stdin.flush()
    assert agent.wait(30) == 70
    assert agent.stderr.read() == b""


def test_a_host_of_another_protocol_gets_the_report_and_then_the_end():
    agent = raw_agent()
    agent.stdin.write(m.Hello(protocol=99, session="s", grace_ms=1, lifetime_ms=9999, output_max=1, sample=[]).encode())
    agent.stdin.flush()
    assert b'"t":"report"' in agent.stdout.read()
    assert agent.wait(30) == 0


def test_the_report_is_what_the_process_really_has():
    with Guest(ready=False, env={"MARK": "1"}) as guest:
        report = guest.report
        lines = Path(f"/proc/{guest.process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert report.protocol == PROTOCOL_VERSION
        version = subprocess.run([PYTHON, "-V"], capture_output=True, text=True, check=True).stdout
        assert version == f"Python {report.python}\n"
        assert (report.uid, report.gid) == (os.getuid(), os.getgid())
        assert (report.cap_eff, report.cap_bnd) == (status["CapEff"], status["CapBnd"])
        assert (report.no_new_privs, report.seccomp) == (int(status["NoNewPrivs"]), int(status["Seccomp"]))
        assert report.dumpable == 0
        assert report.socket_denied is False  # no filter here: the probe says so
        assert "lo" in report.interfaces
        assert "MARK" in report.env
        assert any(mount.startswith("/proc proc ") for mount in report.mounts)
        assert report.input_size == -1 or Path("/input").exists()


def test_the_agent_cannot_be_read_or_signalled_into_trouble_by_the_kernel(guest):
    got = guest.run(
        "import os\nfor name in sorted(os.listdir('/proc/self/fd'), key=int):\n"
        "    try: print(name, os.readlink('/proc/self/fd/' + name))\n    except OSError: pass"
    )
    numbers = [int(line.split()[0]) for line in got.text.splitlines()]
    assert [number for number in numbers if number < 3] == [0, 1, 2]
    assert len([number for number in numbers if number >= 1000 - 8]) == 4
    mine = {str(Path(f"/proc/self/fd/{fd.fileno()}").readlink()) for fd in (guest.process.stdin, guest.process.stdout)}
    assert not mine & {line.partition(" ")[2] for line in got.text.splitlines()}


DEATHS = {
    "os._exit": ("import os\nprint('before')\nos._exit(4)", "exit", 4),
    "exit 0": ("import os\nprint('before')\nos._exit(0)", "exit", 0),
    "segfault": ("import ctypes\nprint('before')\nctypes.string_at(0)", "signal", 11),
    "abort": ("import os\nprint('before')\nos.abort()", "signal", 6),
    "kill": ("import os\nprint('before')\nos.kill(os.getpid(), 9)", "signal", 9),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_dead_kernel_is_reported_with_its_cause_and_replaced(guest, name):
    source, cause, code = DEATHS[name]
    guest.run("x = 1")
    got = guest.run(source)
    assert got.status == "kernel_died"
    assert (got.down.gen, got.down.cell, got.down.cause, got.down.code, got.down.expired) == (1, 2, cause, code, False)
    assert got.text.startswith("before\n")
    assert guest.run("print('x' in globals(), llm_query('again'))").text == "False AGAIN\n"


def test_a_dead_kernel_takes_its_children_with_it(guest):
    got = guest.run(
        "import os, subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\nos._exit(1)"
    )
    assert gone_within(20, int(got.text))


def test_an_endless_cell_is_interrupted_at_its_deadline_and_the_kernel_lives(guest):
    guest.run("kept = 1")
    got = guest.run("while True: pass", timeout=0.3)
    assert (got.status, got.expired) == ("interrupted", True)
    assert "KeyboardInterrupt" in got.error
    assert guest.run("print(kept)").text == "1\n"


def test_a_cell_that_ignores_its_interrupt_is_killed_after_the_grace_time(guest):
    got = guest.run(
        "while True:\n    try:\n        while True: sum(range(999))\n    except KeyboardInterrupt: pass", timeout=0.3
    )
    assert got.expired
    assert (got.down.cause, got.down.code, got.down.expired, got.down.cell) == ("unresponsive", 9, True, 1)
    assert guest.run("print('new')").text == "new\n"


def test_a_cell_that_ignores_the_signal_is_killed_too(guest):
    got = guest.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", timeout=0.3)
    assert got.down.cause == "unresponsive"


def test_a_cell_that_stops_its_own_process_is_killed_too(guest):
    got = guest.run("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", timeout=0.3)
    assert got.down.cause == "unresponsive"
    assert guest.run("print('new')").text == "new\n"


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(600)",
        "llm_query('never answered')",
        "import threading\nthreading.Event().wait()",
    ],
)
def test_the_host_can_interrupt_whatever_a_cell_waits_for(guest, source):
    guest.on_message = lambda *_: None
    guest.begin("print('running', flush=True)\n" + source)
    guest.expect(m.Output)
    guest.send(m.Interrupt(cell=1))
    got = guest.finish()
    assert (got.status, got.expired) == ("interrupted", False)
    assert guest.run("print('next')").text == "next\n"


def test_an_interrupt_that_comes_with_its_cell_is_not_lost(guest):
    for _ in range(50):
        cell = guest.begin("while True: pass")
        guest.send(m.Interrupt(cell=cell))
        got = guest.finish()
        assert (got.status, got.down) == ("interrupted", None)


def test_an_interrupt_that_comes_late_hits_no_other_cell(guest):
    for _ in range(200):
        cell = guest.begin("pass")
        guest.expect(m.Result)
        guest.send(m.Interrupt(cell=cell), m.CellEnd(cell=cell))
        guest.expect(m.CellClosed)
        got = guest.run("total = sum(range(2000))\nprint(total)")
        assert (got.status, got.text) == ("ok", "1999000\n")


def test_an_interrupt_of_a_cell_that_is_not_running_is_ignored(guest):
    guest.send(m.Interrupt(cell=77))
    assert guest.run("print('fine')").text == "fine\n"


def test_a_cell_that_signals_itself_has_an_error_and_was_not_interrupted(guest):
    got = guest.run("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
    assert got.status == "error"
    assert got.error.rstrip().endswith("KeyboardInterrupt")
    assert guest.run("print('on')").text == "on\n"


def test_an_alarm_that_a_cell_left_behind_strikes_between_cells_and_breaks_nothing(guest):
    guest.run(
        "import signal\ndef ring(*_): raise RuntimeError('ring')\nsignal.signal(signal.SIGALRM, ring)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)"
    )
    for number in range(30):
        got = guest.run(f"try:\n    print({number})\nexcept RuntimeError: pass")
        assert got.status in ("ok", "error")
        time.sleep(0.01)
    while guest.run("signal.setitimer(signal.ITIMER_REAL, 0)").status != "ok":
        continue
    assert guest.run("print('quiet')").text.endswith("quiet\n")


def test_a_flood_of_output_is_bounded_counted_and_stops_nothing():
    with Guest(output_max=100_000) as guest:
        got = guest.run("chunk = 'x' * (1 << 20)\nfor _ in range(64): print(chunk, end='')\nprint()")
        assert (got.status, len(got.output)) == ("ok", 100_000)
        assert got.closed.dropped == 64 * (1 << 20) + 1 - 100_000
        assert guest.run("print('after')").text == "after\n"


def test_a_host_that_does_not_read_stops_the_kernel_and_not_the_agent():
    with Guest(output_max=1 << 30, grace_ms=200) as guest:
        guest.begin("chunk = 'x' * (1 << 20)\nwhile True: print(chunk)")
        time.sleep(0.5)
        resident = int(Path(f"/proc/{guest.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 100 << 20
        guest.send(m.Bye())
        assert guest.process.wait(20) == 0


def test_a_lost_host_ends_everything_even_with_a_full_queue():
    with Guest(output_max=1 << 30) as guest:
        child = int(guest.run("import os\nprint(os.getpid())").text)
        guest.begin("chunk = 'x' * (1 << 20)\nwhile True: print(chunk)")
        time.sleep(0.3)
        guest.process.stdin.close()
        assert guest.process.wait(20) == 0
        assert gone_within(20, child)


def test_a_host_that_stops_listening_ends_everything():
    with Guest() as guest:
        guest.process.stdout.close()
        assert guest.process.wait(20) == 0


def test_the_lifetime_ends_a_container_that_its_host_forgot():
    with Guest(lifetime_ms=600) as guest:
        guest.begin("while True: pass")
        assert guest.process.wait(20) == 0


def test_bye_ends_a_busy_guest(guest):
    child = int(guest.run("import os\nprint(os.getpid())").text)
    guest.begin("while True: pass")
    guest.send(m.Bye())
    assert guest.process.wait(20) == 0
    assert gone_within(20, child)


def test_a_killed_agent_takes_the_kernel_with_it(guest):
    child = int(guest.run("import os\nprint(os.getpid())").text)
    guest.process.kill()
    guest.process.wait(20)
    assert gone_within(20, child)


def test_bytes_forged_on_the_kernels_own_pipe_are_a_violation_that_the_host_sees(guest):
    guest.begin("import os\nfor fd in range(3, 1100):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass")
    with pytest.raises(FrameError):
        guest.finish()


def test_a_forged_result_cannot_name_another_cell(guest):
    forged = m.Result(cell=9, status="ok", variables=[], variables_total=0, warnings=[]).encode()
    guest.begin(f"import os\nfor fd in range(3, 1100):\n    try: os.write(fd, {forged!r})\n    except OSError: pass")
    with pytest.raises(FrameError):
        guest.finish()


def test_frames_forged_on_standard_output_are_output(guest):
    forged = m.KernelDown(gen=1, cell=1, cause="exit", code=0, expired=False, dropped=0).encode()
    got = guest.run(f"import os\nos.write(1, {forged!r})\nos.write(2, {forged!r})")
    assert (got.status, got.output) == ("ok", forged * 2)


def test_writing_to_every_low_descriptor_harms_nothing(guest):
    got = guest.run(
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'junk')\n    except OSError: pass\nprint('ok')"
    )
    assert (got.status, got.text) == ("ok", "ok\n")
    got = guest.run("os.closerange(3, 256)\nprint('still')")
    assert (got.status, got.text) == ("ok", "still\n")


def test_strays_are_ended_with_the_cell_and_children_of_the_kernel_live_on(guest):
    got = guest.run(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    pid = os.fork()\n"
        "    if pid == 0: time.sleep(600)\n"
        "    print(pid, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(child.pid)"
    )
    daemon, child = sorted(map(int, got.text.split()), reverse=True)
    assert got.closed.strays == 1
    assert gone_within(20, daemon)
    assert alive(child)
    assert guest.run("child.kill()\nprint(child.wait())").text == "-9\n"


def test_daemons_that_fork_on_and_on_are_ended(guest):
    got = guest.run(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        deadline = time.monotonic() + 60\n"
        "        while time.monotonic() < deadline:\n"
        "            if os.fork(): os._exit(0)\n"
        "            time.sleep(0.05)\n"
        "    os._exit(0)\n"
        "os.wait()\ntime.sleep(0.1)"
    )
    assert got.status == "ok"
    assert got.closed.strays >= 1
    assert guest.run("print('calm')").text == "calm\n"
    assert children_of(guest.process.pid) == 1


def children_of(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_output_of_a_thread_between_cells_belongs_to_none(guest, tmp_path):
    mark = tmp_path / "mark"
    guest.run(
        "import os, threading, time\n"
        "def say():\n"
        f"    while not os.path.exists({str(mark)!r}): time.sleep(0.01)\n"
        "    print('late')\n"
        "threading.Thread(target=say).start()"
    )
    mark.touch()
    message = guest.expect(m.Output)
    assert (message.cell, message.payload) == (0, b"late\n")


def test_settings_that_are_no_json_are_told_and_the_kernel_is_not_respawned_in_a_spin():
    with Guest(ready=False) as guest:
        guest.send(m.Go(payload=b"nonsense"))
        told = guest.expect(m.Output).payload
        assert b"JSONDecodeError" in told
        guest.expect(m.KernelDown)
        began = time.monotonic()
        for _ in range(3):
            down = guest.expect(m.KernelDown)
        assert (down.cause, down.code, down.cell) == ("exit", 70, 0)
        assert time.monotonic() - began >= 0.2 + 0.4  # the pauses themselves: a lower bound that load cannot break


def test_two_guests_do_not_disturb_each_other():
    with Guest() as one, Guest() as other:
        one.begin("import time\ntime.sleep(0.2)\nprint('one')")
        assert other.run("print('other')").text == "other\n"
        assert one.finish().text == "one\n"


def test_a_large_cell_runs(guest):
    got = guest.run("data = '" + "x" * 5_000_000 + "'\nprint(len(data))")
    assert got.text == "5000000\n"


def test_the_settings_reach_the_kernel():
    with Guest(settings={"max_prompt_bytes": 10}) as guest:
        got = guest.run("llm_query('01234567890')")
        assert "the limit is 10" in got.error


def test_a_host_that_closes_both_ends_finds_the_guest_gone(guest):
    guest.process.stdin.close()
    guest.process.stdout.close()
    assert guest.process.wait(20) == 0
    with pytest.raises((GuestGone, ValueError)):
        guest.send(m.Bye())
