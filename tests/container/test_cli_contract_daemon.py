"""The life of the daemon and of sessions: how they end, what they leave, and how one goes on after either died."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from rlm_sandbox.container.gc import LABEL_DEADLINE, LABEL_HOME, LABEL_OWNER, LABEL_SESSION, home_digest
from tests.support.cli import alive, docker, eventually

pytestmark = pytest.mark.container


def test_a_state_folder_with_a_very_long_path_serves(deep, log_file):
    with deep.session(log_file) as started:
        assert deep.exec("print(1)", "--session", started["session"])["stdout"] == "1\n"


def test_exec_takes_the_only_live_session_and_asks_when_there_are_two(fresh, log_file):
    assert fresh("exec", "-c", "1").code == 4
    first = fresh.start(log_file)
    assert fresh.exec("print('only')")["session"] == first["session"]
    second = fresh.start(log_file, "--session", "my.own-name_2")
    assert second["session"] == "my.own-name_2"
    ambiguous = fresh("exec", "-c", "1")
    assert ambiguous.code == 4
    assert first["session"] in ambiguous.err
    assert "--session" in ambiguous.err
    assert fresh.ok("stop", "--session", first["session"])["was_live"] is True
    assert fresh.exec("print('left')")["session"] == "my.own-name_2"
    assert fresh.ok("stop")["stopped"] == "my.own-name_2"
    assert fresh.ok("stop")["was_live"] is False
    assert fresh.ok("stop", "--session", "my.own-name_2")["was_live"] is False


def test_two_sessions_do_not_disturb_each_other(fresh, log_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("another input\n")
    other.chmod(0o644)
    one, two = fresh.start(log_file), fresh.start(other)
    fresh.exec("x = 'one'; import os; open('/tmp/mark', 'w').write('1')", "--session", one["session"])
    fresh.exec("import time; time.sleep(3)", "--session", one["session"], "--wait", "0")
    done = fresh.exec("print('x' in globals(), os.path.exists('/tmp/mark') if 'os' in globals() else None)\n"
                      "import os; print(os.listdir('/tmp')); print(context)", "--session", two["session"])  # fmt: skip
    assert done["stdout"] == "False None\n[]\nanother input\n\n"
    fresh.exec("os._exit(9)", "--session", two["session"])
    assert fresh.ok("wait", "--session", one["session"])["status"] == "ok"
    assert fresh.exec("print(x)", "--session", one["session"])["stdout"] == "one\n"
    assert sorted(fresh.ok("stop", "--all")["stopped"]) == sorted([one["session"], two["session"]])
    assert fresh.ok("list")["sessions"] == []
    assert fresh.containers() == []


def test_the_container_carries_the_session_and_none_of_the_keys(fresh, log_file):
    keys = {"ANTHROPIC_API_KEY": "sk-ant-secret-1", "OPENAI_API_KEY": "sk-secret-2", "LLM_API_KEY": "secret-3"}
    started = fresh.start(log_file, env=keys)
    (ident,) = docker("ps", "-q", "--filter", f"label={LABEL_SESSION}={started['session']}").split()
    inspected = docker("inspect", ident)
    facts = json.loads(inspected)[0]
    assert facts["Config"]["Labels"][LABEL_SESSION] == started["session"]
    assert facts["HostConfig"]["NetworkMode"] == "none"
    assert facts["HostConfig"]["ReadonlyRootfs"] is True
    assert facts["HostConfig"]["AutoRemove"] is True
    state = b"".join(path.read_bytes() for path in fresh.path.rglob("*") if path.is_file())
    environment = Path(f"/proc/{fresh.daemon}/environ").read_bytes()
    for key in keys.values():
        assert key not in inspected
        assert key.encode() not in state
        assert key.encode() not in environment


def test_all_state_is_private(fresh, log_file):
    os.umask(0)
    try:
        fresh.start(log_file)
        fresh.exec("print('x' * 9999); llm_query('q'); FINAL('a')")
    finally:
        os.umask(0o022)
    loose = [path for path in (fresh.path, *fresh.path.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert loose == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_daemon_leaves_no_container(fresh, log_file, number):
    fresh.start(log_file)
    fresh.exec("import time; time.sleep(60)", "--wait", "0")
    os.kill(fresh.daemon, number)
    eventually(lambda: not fresh.containers(), "a container outlived its daemon")
    assert fresh.ok("broker", "status")["running"] is False


def test_after_the_daemon_died_an_old_session_says_how_to_go_on(fresh, log_file):
    session = fresh.start(log_file, "--budget", "5")["session"]
    fresh.exec("a = llm_query('paid once'); FINAL('kept: ' + a)")
    pid = fresh.daemon
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), "the daemon did not die")
    for command in ("exec", "status", "wait", "budget"):
        result = fresh(command, "--session", session, stdin="1")
        assert result.code == 4
        assert f"start --session {session}" in result.error["hint"]
    assert fresh.ok("list")["sessions"] == []
    assert fresh.ok("stop", "--session", session)["was_live"] is False
    assert fresh("final", "--session", session).out.startswith(b"kept: ")

    again = fresh.start(log_file, "--session", session)
    assert again["reopened"] is True
    assert again["budget_limit"] == 5, "the first start's cap, not the default"
    done = fresh.exec("print('a' in globals()); b = llm_query('paid once')")
    assert done["stdout"] == "True\n", "its variables are restored from the record"
    assert (done["budget"]["calls"], done["budget"]["cached_calls"]) == (1, 1)
    assert fresh("final", "--session", session).out.startswith(b"kept: ")


def test_a_stopped_session_is_reopened_with_its_ledger_and_a_new_cap(fresh, log_file, tmp_path):
    session = fresh.start(log_file, "--budget", "2")["session"]
    fresh.exec("llm_query('a'); llm_query('b')")
    fresh.ok("stop")
    assert fresh.start(log_file, "--session", session)["budget_limit"] == 2
    assert "BudgetExceeded" in fresh.exec("llm_query('c')")["error"]
    fresh.ok("budget", "--set", "3")
    fresh.ok("stop")
    fresh.start(log_file, "--session", session)
    assert fresh.ok("budget")["limit"] == 3, "what was set later stays"
    fresh.ok("stop")
    fresh.start(log_file, "--session", session, "--budget", "4")
    assert (fresh.ok("budget")["limit"], fresh.ok("budget")["calls"]) == (4, 2)
    fresh.ok("stop")
    (tmp_path / "other").write_text("x")
    other = fresh("start", "--input", str(tmp_path / "other"), "--session", session, "--provider", "scripted")
    assert (other.code, other.error["kind"]) == (2, "usage")


def test_a_reopened_session_keeps_its_provider_and_models_unless_others_are_named(fresh, log_file):
    session = fresh.start(log_file, "--model", "first", "--allow-model", "second")["session"]
    fresh.exec("a = llm_query('paid once'), llm_query('paid once', model='second')")
    fresh.ok("stop")
    reopen = ("start", "--input", str(log_file), "--session", session)
    again = fresh.ok(*reopen, env={"ANTHROPIC_API_KEY": "sk-ant-of-another"})
    assert (again["provider"], again["model"]) == ("scripted", "first")
    done = fresh.exec("b = llm_query('paid once'), llm_query('paid once', model='second'); print(a == b)")
    assert (done["stdout"], done["budget"]["calls"]) == ("True\n", 2)
    fresh.ok("stop")
    assert fresh.ok(*reopen, "--model", "third")["model"] == "third"
    fresh.ok("stop")
    keyless = fresh(*reopen, "--provider", "anthropic")
    assert (keyless.code, keyless.error["kind"]) == (3, "prerequisite")


def test_a_live_session_cannot_be_started_again(fresh, log_file):
    session = fresh.start(log_file)["session"]
    result = fresh("start", "--input", str(log_file), "--session", session, "--provider", "scripted")
    assert result.code == 2
    assert "live" in result.error["message"]
    assert fresh.exec("print(1)")["stdout"] == "1\n"


def test_stopping_while_a_cell_runs_ends_both(fresh, log_file):
    fresh.start(log_file)
    running = fresh.spawn("exec", "-c", "import time; time.sleep(60)")
    eventually(lambda: fresh.ok("status")["status"] == "running", "the cell did not start")
    assert fresh.ok("stop")["was_live"] is True
    out, err = running.communicate(timeout=20)
    assert running.returncode == 4
    assert json.loads(out)["error"]["kind"] == "no_session"
    assert len(err.decode().splitlines()) == 1


def test_stopping_the_daemon_tells_whoever_waits(fresh, log_file):
    fresh.start(log_file)
    running = fresh.spawn("exec", "-c", "import time; time.sleep(60)")
    eventually(lambda: fresh.ok("status")["status"] == "running", "the cell did not start")
    assert fresh.ok("broker", "stop")["stopped"] is True
    out, _ = running.communicate(timeout=20)
    assert running.returncode == 4, out
    assert fresh.containers() == []
    assert fresh.ok("broker", "stop")["stopped"] is False


def test_an_idle_session_ends_and_so_does_one_over_its_time(fresh, log_file):
    idle = fresh.start(log_file, "--idle-timeout", "1")["session"]
    timed = fresh.start(log_file, "--time-limit", "2")["session"]
    busy = fresh.spawn("exec", "--session", timed, "-c", "import time; time.sleep(60)")
    eventually(lambda: fresh.ok("list")["sessions"] == [], "a session outlived its limit")
    out, _ = busy.communicate(timeout=20)
    assert busy.returncode == 9, out
    assert fresh("exec", "--session", idle, stdin="1").code == 4
    eventually(lambda: not fresh.containers(), "a container outlived its session")


def test_a_running_cell_keeps_a_session_from_being_idle(fresh, log_file):
    fresh.start(log_file, "--idle-timeout", "1")
    assert fresh.exec("import time; time.sleep(3); print('done')")["stdout"] == "done\n"


def test_gc_removes_orphans_and_spares_what_lives(fresh, log_file):
    started = fresh.start(log_file)
    image = json.loads(docker("inspect", *fresh.containers()))[0]["Image"]
    labels = {
        LABEL_SESSION: "orphan",
        LABEL_OWNER: "0" * 32,
        LABEL_HOME: home_digest(fresh.path),
        LABEL_DEADLINE: str(int(time.time()) + 9999),
    }
    flags = [word for item in labels.items() for word in ("--label", "=".join(item))]
    docker("run", "-d", "--network", "none", *flags, "--entrypoint", "/usr/local/bin/python3", image,
           "-c", "import time; time.sleep(600)")  # fmt: skip
    stage = fresh.path / "sessions" / "long-gone" / "stage"
    stage.mkdir(parents=True)
    (stage / "copy").write_text("x")
    assert len(fresh.containers()) == 2
    collected = fresh.ok("gc")
    assert (collected["containers"], collected["stages"]) == (["orphan"], ["long-gone"])
    assert not stage.exists()
    assert len(fresh.containers()) == 1
    assert fresh.exec("print('alive')")["session"] == started["session"]
    assert fresh.ok("gc")["containers"] == []


def test_an_engine_that_does_not_answer_is_exit_3_with_a_fix(fresh, log_file):
    for host in ("unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"):
        result = fresh("start", "--input", str(log_file), "--provider", "scripted", env={"DOCKER_HOST": host})
        assert (result.code, result.error["kind"]) == (3, "engine"), result
        assert result.error["hint"]
        assert len(result.err.splitlines()) == 1
    assert fresh.ok("list")["sessions"] == []
    assert list(fresh.path.glob("sessions/*")) == []
    with fresh.session(log_file) as started:
        assert started["session"], "the next start, with an engine, works on the same daemon"


def test_the_broker_serves_in_the_foreground_and_a_second_one_is_refused(fresh, log_file):
    serving = fresh.spawn("broker", "serve", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: fresh.ok("broker", "status")["running"], "the broker did not come up")
    assert fresh.daemon == serving.pid
    second = fresh("broker", "serve", timeout=30)
    assert second.code == 3
    assert "already" in second.error["message"]
    fresh.start(log_file)
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(20) == 0
    assert fresh.containers() == []
    assert not (fresh.path / "run" / "broker.sock").exists()


def test_many_commands_at_once_start_one_daemon(fresh, log_file):
    commands = [fresh.spawn("start", "--input", str(log_file), "--provider", "scripted") for _ in range(4)]
    started = [json.loads(command.communicate(timeout=60)[0]) for command in commands]
    assert len({document["session"] for document in started}) == 4
    assert len(fresh.ok("list")["sessions"]) == 4
    assert len(fresh.ok("stop", "--all")["stopped"]) == 4


def test_a_start_whose_caller_is_killed_leaves_nothing(fresh, tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("x" * 100_000)
    fresh.start(tmp_path, "--session", "warm")
    fresh.ok("stop")
    folder = fresh.path / "sessions" / "given-up"
    command = fresh.spawn("start", "--input", str(tmp_path), "--provider", "scripted", "--session", "given-up")
    while not folder.exists():
        time.sleep(0.001)
    command.kill()
    command.communicate()
    eventually(lambda: not folder.exists(), "the folder of a start that was given up stays")
    assert fresh.ok("list")["sessions"] == []
    assert fresh.containers() == []


def test_ctrl_c_ends_the_command_with_130_and_not_the_cell(fresh, log_file):
    fresh.start(log_file)
    command = fresh.spawn("exec", "-c", "import time; time.sleep(2); print('whole')")
    eventually(lambda: fresh.ok("status")["status"] == "running", "the cell did not start")
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=20)
    assert command.returncode == 130
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert fresh.ok("wait")["stdout"] == "whole\n"


def talks(pid):
    """Tell whether a process holds a socket besides its standard streams."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed between the two looks
            if int(entry.name) > 2 and str(entry.readlink()).startswith("socket:"):
                return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_says_so_and_leaves_the_cell_alone(fresh, log_file, number):
    fresh.start(log_file)
    assert fresh.ok("exec", "-c", "import time; time.sleep(2); print('whole')", "--wait", "0")["status"] == "running"
    command = fresh.spawn("wait")
    eventually(lambda: talks(command.pid), "the command did not connect to the daemon")
    command.send_signal(number)
    out, _ = command.communicate(timeout=20)
    assert command.returncode == 130
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert fresh.ok("wait")["stdout"] == "whole\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_stops_its_session(fresh, log_file, tmp_path, number):
    (tmp_path / "slow.json").write_text(json.dumps([{"match": "", "answer": "x", "latency_ms": 60000}]))
    command = fresh.spawn("run", "What?", "--input", str(log_file), "--provider", "scripted",
                          "--strategy", "map-reduce", env={"RLM_SCRIPT": str(tmp_path / "slow.json")})  # fmt: skip
    eventually(lambda: fresh.ok("list")["sessions"], "the run did not start")
    command.send_signal(number)
    for _ in range(5 if number == signal.SIGINT else 0):  # as people do
        time.sleep(0.02)
        if command.poll() is None:
            command.send_signal(number)
    out, _ = command.communicate(timeout=20)
    assert command.returncode == 130
    assert json.loads(out)["error"]["hint"] == "the session was stopped"
    assert fresh.ok("list")["sessions"] == []
    assert fresh.containers() == []


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere", "/tmp"])
def test_a_state_folder_that_cannot_be_ours_is_refused(fresh, log_file, home):
    before = Path("/tmp").stat().st_mode
    result = fresh("start", "--input", str(log_file), "--provider", "scripted", env={"RLM_SANDBOX_HOME": home})
    assert (result.code, len(result.err.splitlines())) == (3, 1)
    assert Path("/tmp").stat().st_mode == before


def test_a_reopened_session_says_that_its_first_time_limit_goes_on(fresh, log_file):
    session = fresh.start(log_file, "--time-limit", "500")["session"]
    fresh.ok("stop")
    again = fresh.start(log_file, "--session", session, "--time-limit", "5000")
    (told,) = [text for text in again["warnings"] if "time limit" in text]
    assert "nothing is bought after another" in told
    assert fresh.ok("budget")["time_left_s"] < 500
    fresh.ok("stop")
    assert not [text for text in fresh.start(log_file, "--session", session)["warnings"] if "time limit" in text]
