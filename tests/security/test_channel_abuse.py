"""A guest that lies, floods or stops reading: it can end its own session, and nothing else.

The code of a cell finds the interpreter's own end of the channel and writes to it what it likes. A second session on the same daemon does
honest work meanwhile.
"""

import json
import os
from pathlib import Path

import pytest

from rlm_sandbox.errors import NoSuchSession
from rlm_sandbox.session import start as start_module
from rlm_sandbox.session.host import Host
from rlm_sandbox.session.live import BOOTS_MAX
from rlm_sandbox.session.start import StartRequest
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import encode

pytestmark = pytest.mark.security

OUT = """
import os, stat, struct, threading, time
pipes = sorted(int(n) for n in os.listdir("/proc/self/fd") if int(n) >= 900)
voice = pipes[1]
os.set_blocking(voice, True)
def say(raw):
    view = memoryview(raw)
    while view:
        view = view[os.write(voice, view):]
"""
"""The interpreter's descriptors are, in order: what the host says, what it is told, interrupts, output."""


def raw(header, payload=b""):
    """A frame with any text as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + text + payload


def an_ask(number, **fields):
    given = {
        "system": None, "prefix": None, "schema": None, "model": None, "max_tokens": None, "thinking_budget": None,
    }  # fmt: skip
    return m.Ask(
        id=number, group=1, size=1, width=0, ordinal=0, cache=True, sample=0, payload=b"?", **{**given, **fields}
    ).encode()


ARRAY = b'{"t":"ask_budget","id":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
LIES = {
    "a length of four gigabytes": b"\xff" * 8,
    "a payload of two gigabytes": (20).to_bytes(4, "big") + (2**31).to_bytes(4, "big") + b"x" * 20,
    "a header that is no JSON": raw(b"not json"),
    "a header nested deep": raw(ARRAY),
    "a key given twice": raw(b'{"t":"ask_budget","id":1,"id":2}'),
    "a number that is none": raw(b'{"t":"ask_budget","id":NaN}'),
    "half a character": raw(b'{"t":"ask_budget","id":1,"x":"\\ud800"}'),
    "an unknown message": raw({"t": "exec", "code": "1"}),
    "a field too many": raw({"t": "ask_budget", "id": 1, "base_url": "http://evil"}),
    "a true instead of a number": raw({"t": "ask_budget", "id": True}),
    "a negative number": raw({"t": "ask_budget", "id": -1}),
    "a payload where there is none": raw({"t": "ask_budget", "id": 1}, b"payload"),
    "a message of the host": m.Answer(1, "ok", "", False, b"").encode(),
    "a message of the agent": m.KernelDown(gen=1, cell=0, cause="exit", code=0, expired=False, dropped=0).encode(),
    "ready twice": m.Ready().encode(),
    "a result of another cell": m.Result(cell=99, status="ok", variables=[], variables_total=0, warnings=[]).encode(),
    "an id used twice": an_ask(2**40) + an_ask(2**40),
    "a text that was never shared": an_ask(2**40, system=2**39),
    "a question that is no text": encode(
        json.loads(an_ask(2**40)[8:-1].decode()), b"\xff\xfe"
    ),
    "a pickle": b"cos\nsystem\n(S'touch /tmp/canary'\ntR.",
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(cli, log_file):
    with cli.session(log_file, "--session", "honest", "--memory", "256m") as started:
        yield started["session"]


def works(cli, honest):
    done = cli.exec("print(len(grep('ERROR')), llm_query('still there?') != '')", "--session", honest)
    return done["stdout"] == "2 True\n"


@pytest.mark.parametrize("name", LIES)
def test_a_lie_ends_its_own_session_with_a_protocol_error(cli, log_file, honest, name):
    liar = cli.start(log_file, "--memory", "128m")["session"]
    result = cli("exec", "--session", liar, "--timeout", "30", stdin=f"{OUT}say({LIES[name]!r})\ntime.sleep(20)")
    assert (result.code, result.error["kind"]) == (8, "protocol"), result
    assert result.error["hint"]
    assert len(result.err.splitlines()) == 1
    assert cli("exec", "--session", liar, "-c", "1").code == 4
    assert works(cli, honest)


def test_half_a_frame_dies_with_its_interpreter(cli, log_file, honest):
    with cli.session(log_file, "--memory", "128m") as started:
        named = ("--session", started["session"])
        stubborn = "while True:\n    try:\n        time.sleep(60)\n    except BaseException: pass"
        code = f"{OUT}say({m.AskBudget(id=2**40).encode()[:-3]!r})\n{stubborn}"
        assert cli.exec(code, *named, "--timeout", "1")["status"] == "kernel_died"
        assert cli.exec("print(budget()['calls'])", *named)["stdout"] == "0\n"
        assert works(cli, honest)


def test_a_guest_that_asks_and_never_reads_keeps_nobody_waiting(cli, log_file, honest):
    """Its reading thread stands still while ten thousand answers wait for it."""
    with cli.session(log_file, "--memory", "128m") as started:
        deaf = ("--session", started["session"])
        code = f"""{OUT}
null = os.open(os.devnull, os.O_RDONLY)
quiet_r, quiet_w = os.pipe()
os.dup2(quiet_r, pipes[0])  # whoever reads the host's voice from now on hears nothing, and the pipe itself fills up
kept = os.dup(quiet_r)
number = 2**40
for _ in range(10_000):
    number += 1
    say(struct.pack('>II', len(h := ('{{"t":"ask_budget","id":%d}}' % number).encode()), 0) + h)
print('asked', flush=True)
time.sleep(60)
"""
        first = cli.exec(code, *deaf, "--wait", "2", "--timeout", "60")
        assert first["status"] == "running"
        for _ in range(3):
            assert works(cli, honest)
        assert cli.ok("status", *deaf)["status"] == "running"
        assert cli.ok("interrupt", *deaf, "--wait", "20")["status"] in {"interrupted", "kernel_died"}
        assert works(cli, honest)


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_flood_of_small_frames_starves_nobody_and_fills_no_memory(cli, log_file, honest):
    before = resident(cli.daemon)
    with cli.session(log_file, "--memory", "128m") as started:
        flooding = ("--session", started["session"])
        frames = m.Unshare(id=1).encode() * 4000
        cli.exec(f"{OUT}frames = {frames!r}\nwhile True: say(frames)", *flooding, "--wait", "0.5", "--timeout", "60")
        for _ in range(3):
            assert works(cli, honest)
        assert cli.ok("status", *flooding)["status"] == "running"
        assert resident(cli.daemon) - before < 100 << 20


def test_texts_held_without_end_are_the_end_of_the_session(cli, log_file, honest):
    before = resident(cli.daemon)
    hoarder = cli.start(log_file, "--memory", "128m")["session"]
    code = f"""{OUT}
number = 2**40
while True:
    number += 1
    header = ('{{"t":"share","id":%d}}' % number).encode()
    say(struct.pack('>II', len(header), 1 << 20) + header + b'x' * (1 << 20))
"""
    result = cli("exec", "--session", hoarder, "--timeout", "60", stdin=code)
    assert (result.code, result.error["kind"]) == (8, "protocol"), result
    assert works(cli, honest)
    assert resident(cli.daemon) - before < 400 << 20


def test_five_hundred_threads_asking_at_once_stay_within_width_and_budget(cli, log_file, honest):
    with cli.session(log_file, "--budget", "40", "--concurrency", "4", "--memory", "256m", "--pids", "700") as started:
        done = cli.exec(
            """
import threading
outcomes = []
def ask(number):
    try:
        llm_query(f"question {number}")
        outcomes.append("answer")
    except Exception as exc:
        outcomes.append(type(exc).__name__)
threading.stack_size(1 << 16)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(500)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted((kind, outcomes.count(kind)) for kind in set(outcomes)))
""",
            "--session", started["session"],
        )  # fmt: skip
        assert eval(done["stdout"]) == [("BudgetExceeded", 460), ("answer", 40)]
        assert done["budget"]["calls"] == 40
    assert works(cli, honest)


async def test_an_interpreter_that_never_boots_is_given_up_after_a_few_tries(tmp_path, log_file, monkeypatch):
    monkeypatch.setattr(start_module, "go_payload", lambda *_, **__: b'{"str_max": "none"}')
    host = await Host.open(tmp_path / "home")
    try:
        request = StartRequest(input=str(log_file), flags={"provider": "scripted", "memory": 128 << 20})
        live = None
        try:
            await host.start(request)
            (live,) = host.sessions.values()
            await live.execute(b"1", timeout_s=10, wait_s=None, stdout_max=None)
        except NoSuchSession as exc:
            assert f"{BOOTS_MAX} times" in exc.message  # noqa: PT017 - the start itself may be told, or the first cell
        else:
            pytest.fail("a cell ran")
        monkeypatch.undo()
        await host.start(request)
        (good,) = host.sessions.values()
        done = await good.execute(b"print(7)", timeout_s=10, wait_s=None, stdout_max=None)
        assert done.stdout == "7\n"
    finally:
        await host.close()
