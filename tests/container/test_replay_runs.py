"""Runs that come back, run again elsewhere, and say where they part from their record."""

import json
import re
import shutil

import pytest

from tests.support.cli import Home, docker, eventually
from tests.support.counting_server import CountingServer

pytestmark = pytest.mark.container


@pytest.fixture
def elsewhere(tmp_path_factory):
    """Another state folder: nothing of the first is in it."""
    home = Home(tmp_path_factory.mktemp("elsewhere") / "home")
    yield home
    home.close()


@pytest.fixture
def recorded(fresh, log_file, tmp_path):
    """A run with calls, an error, randomness and a final answer, exported with its input."""
    fresh.start(log_file, "--session", "one", "--budget", "50")
    fresh.exec(
        "import random\nx = [random.random() for _ in range(3)]\na = llm_query_batch([f'q{i}' for i in range(12)])"
    )
    fresh.exec("print(x, len(context), object())\n1/0")
    fresh.exec("b = budget()['calls']\nFINAL(f'{a[0]} {x[0]} {b}')")
    fresh.ok("export", "--session", "one", "-o", str(tmp_path / "run.rlm"), "--include-input")
    return tmp_path / "run.rlm"


def test_a_run_replays_elsewhere_offline_to_the_same_bytes(recorded, fresh, elsewhere, tmp_path):
    final = fresh("final", "--session", "one").out
    fresh.ok("stop")
    done = elsewhere.ok("replay", str(recorded), "-o", str(tmp_path / "answer"))
    assert done["identical"] is True
    assert done["divergence"] is None
    assert (done["cells"], done["calls"]) == (3, 12)
    assert done["final_sha256"] == done["recorded_final_sha256"]
    assert (tmp_path / "answer").read_bytes() == final
    assert done["image"]["same"] is True
    assert elsewhere.ok("verify", str(recorded))["ok"] is True
    assert not list((elsewhere.path / "tmp").iterdir()), "nothing is left"


def test_a_replay_needs_the_input_and_says_so(recorded, fresh, elsewhere, tmp_path, log_file):
    fresh.ok("export", "--session", "one", "-o", str(tmp_path / "bare.rlm"))
    text = log_file.read_bytes()
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_bytes(text)
    other.write_bytes(text.upper())
    assert elsewhere.ok("replay", str(tmp_path / "bare.rlm"))["identical"] is True, "it is where it was"
    assert elsewhere.ok("replay", str(tmp_path / "bare.rlm"), "--input", str(same))["identical"] is True
    parted = elsewhere("replay", str(tmp_path / "bare.rlm"), "--input", str(other))
    assert parted.code == 10
    assert parted.doc["identical"] is False
    assert parted.doc["divergence"]["field"] == "input"


def test_a_directory_replays_from_its_bundle(fresh, elsewhere, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_text("alpha\n")
    (tree / "sub" / "b.md").write_text("beta\n")
    (tree / "sub" / "c.bin").write_text("left out\n")
    fresh.start(tree, "--session", "dir", "--glob", "*.txt,*.md")
    fresh.exec("FINAL(str([(f['path'], f['chars']) for f in context_files]) + context)")
    fresh.ok("export", "--session", "dir", "-o", str(tmp_path / "dir.rlm"), "--include-input")
    final = fresh("final", "--session", "dir").out
    shutil.rmtree(tree)
    done = elsewhere.ok("replay", str(tmp_path / "dir.rlm"), "-o", str(tmp_path / "answer"))
    assert done["identical"] is True
    assert (tmp_path / "answer").read_bytes() == final
    assert b"left out" not in final


def test_where_a_run_hangs_on_the_clock_the_replay_says_which_cell(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "clock")
    fresh.exec("x = 1")
    fresh.exec("import time\nprint(time.time_ns())")
    fresh.ok("export", "--session", "clock", "-o", str(tmp_path / "run.rlm"))
    parted = elsewhere("replay", str(tmp_path / "run.rlm"))
    assert parted.code == 10
    assert (parted.doc["divergence"]["cell"], parted.doc["divergence"]["field"]) == (2, "output")
    (line,) = parted.err.splitlines()
    assert line.startswith("rlm-sandbox: divergence: cell 2: output: recorded ")


def test_where_an_answer_parts_from_its_record_is_shown_in_its_own_words(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "answer")
    fresh.exec("import os\nFINAL('the same for a long while, then ' + os.urandom(8).hex())")
    fresh.ok("export", "--session", "answer", "-o", str(tmp_path / "run.rlm"))
    parted = elsewhere("replay", str(tmp_path / "run.rlm"))
    found = parted.doc["divergence"]
    assert (parted.code, found["cell"], found["field"]) == (10, 1, "final")
    assert re.fullmatch(
        r"final: recorded '.* then [0-9a-f]{16}' \(from character \d+\), now '.* then [0-9a-f]{16}'", found["what"]
    )
    assert parted.doc["final_sha256"] is None


def test_where_a_run_asks_something_else_the_replay_says_which_call(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "ask")
    fresh.exec("import os\nllm_query('same')\nllm_query('other ' + os.urandom(8).hex())")
    fresh.ok("export", "--session", "ask", "-o", str(tmp_path / "run.rlm"))
    parted = elsewhere("replay", str(tmp_path / "run.rlm"))
    assert parted.code == 10
    found = parted.doc["divergence"]
    assert (found["cell"], found["call"], found["field"]) == (1, 1, "call")
    assert "prompt" in found["what"]


def test_a_frozen_clock_replays(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "frozen", "--clock", "frozen")
    done = fresh.exec(
        "import time, datetime\nprint(time.time(), datetime.datetime.now(), datetime.date.today(), time.strftime('%c'))"
    )
    assert re.match(r"\d+\.0 \d{4}-", done["stdout"])
    fresh.ok("export", "--session", "frozen", "-o", str(tmp_path / "run.rlm"))
    assert elsewhere.ok("replay", str(tmp_path / "run.rlm"))["identical"] is True


def test_a_run_that_hangs_on_its_limits_replays_with_them(fresh, elsewhere, log_file, tmp_path):
    limits = ["--pids", "77", "--tmpfs", "20m", "--tmpfs-files", "300", "--shm", "7m", "--open-files", "99"]
    fresh.start(log_file, "--session", "limits", "--memory", "300m", *limits)
    done = fresh.exec(
        "import os, resource, threading\nheld = []\n"
        "try:\n    while True:\n        held.append(threading.Thread(target=threading.Event().wait, daemon=True)); held[-1].start()\n"
        "except RuntimeError: pass\n"
        "FINAL([resource.getrlimit(resource.RLIMIT_NOFILE), os.statvfs('/tmp').f_blocks, os.statvfs('/tmp').f_files,"
        " os.statvfs('/dev/shm').f_blocks, len(held)])"
    )
    assert done["status"] == "ok"
    fresh.ok("export", "--session", "limits", "-o", str(tmp_path / "run.rlm"))
    assert elsewhere.ok("replay", str(tmp_path / "run.rlm"))["identical"] is True
    (elsewhere.path / "policy.toml").write_text(
        'max_open_files = 90\nmax_tmpfs = "10m"\nproviders = ["anthropic"]\nmodels = ["another"]\n'
    )
    lowered = elsewhere("replay", str(tmp_path / "run.rlm"))
    assert lowered.code == 10
    assert "open_files is 90 here, 99 in the record" in lowered.doc["warnings"]


def test_errors_and_refusals_replay_as_they_were(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "errors", "--budget", "3")
    code = "r = llm_query_batch([str(i) for i in range(5)], on_error='return', concurrency=1)\n"
    code += "print(sorted(type(each).__name__ for each in r))\n"
    code += "try:\n    llm_query('x', model='forbidden')\nexcept PolicyError as e:\n    print(e)\n"
    fresh.exec(code + "FINAL([str(each) for each in r])")
    fresh.ok("export", "--session", "errors", "-o", str(tmp_path / "run.rlm"))
    done = elsewhere.ok("replay", str(tmp_path / "run.rlm"))
    assert done["identical"] is True


def test_a_record_outlives_deaths_and_replays_with_them(fresh, elsewhere, log_file, tmp_path):
    fresh.start(log_file, "--session", "deaths")
    fresh.exec("x = 40\ny = llm_query('one')")
    died = fresh.exec("x = 0\nimport os\nos._exit(1)")
    assert died["status"] == "kernel_died"
    assert "restored" in died["error"]
    after = fresh.exec("x += 2\nprint(x, y)")
    assert after["stdout"].startswith("42 ")
    assert any("variables are restored" in text for text in after["warnings"])
    docker("kill", fresh.containers()[0])
    eventually(lambda: not fresh.containers(), "the container is left")
    again = fresh.exec("FINAL(f'{x} {y}')")
    assert again["cell"] == 4
    assert again["budget"]["calls"] == 1
    fresh.ok("export", "--session", "deaths", "-o", str(tmp_path / "run.rlm"))
    done = elsewhere.ok("replay", str(tmp_path / "run.rlm"), "-o", str(tmp_path / "answer"))
    assert done["identical"] is True
    assert any("left out" in text for text in done["warnings"])
    assert (tmp_path / "answer").read_bytes() == fresh("final", "--session", "deaths").out


def test_resume_brings_a_stopped_session_back_and_buys_nothing(fresh, log_file):
    fresh.start(log_file, "--session", "back", "--budget", "10")
    fresh.exec("def twice(n):\n    return 2 * n\nanswers = llm_query_batch(['a', 'b'])")
    fresh.ok("stop")
    back = fresh.ok("resume")
    assert (back["session"], back["reopened"], back["restored_cells"]) == ("back", True, [1])
    assert fresh.ok("resume")["restored_cells"] == [], "a live session needs nothing"
    done = fresh.exec("print(twice(21), len(answers))")
    assert (done["stdout"], done["cell"], done["budget"]["calls"]) == ("42 2\n", 2, 2)
    fresh.ok("stop")
    fresh.start(log_file, "--session", "back", "--fresh")
    assert fresh.exec("print('answers' in globals())")["stdout"] == "False\n"


def test_a_session_that_lies_elsewhere_is_found_without_the_variable(fresh, log_file, tmp_path):
    variables = {"RLM_SESSION_DIR": str(tmp_path / "elsewhere")}
    fresh.ok("start", "--input", str(log_file), "--provider", "scripted", "--session", "far", env=variables)
    fresh.exec("x = llm_query('once')\nFINAL(x)", "--session", "far")
    fresh.ok("broker", "stop")
    assert [run["session_dir"] for run in fresh.ok("history")["runs"]] == [str(tmp_path / "elsewhere" / "far")]
    assert fresh("final", "--session", "far").code == 0
    back = fresh.ok("resume")
    assert (back["session"], back["session_dir"]) == ("far", str(tmp_path / "elsewhere" / "far"))
    assert fresh.exec("print(len(x) > 0)", "--session", "far")["budget"]["calls"] == 1
    fresh.ok("stop")
    fresh.ok("export", "--session", "far", "-o", str(tmp_path / "far.rlm"))
    again = fresh.ok("start", "--input", str(log_file), "--provider", "scripted", "--session", "far")
    assert (again["reopened"], again["session_dir"]) == (True, str(tmp_path / "elsewhere" / "far"))
    assert fresh.ok("forget", "far")["forgotten"] is True
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert fresh.ok("history")["runs"] == []


def test_resume_says_where_it_parted_and_goes_on_without_that_cell(fresh, log_file):
    fresh.start(log_file, "--session", "part")
    fresh.exec("x = 1")
    fresh.exec("import os\ny = llm_query(os.urandom(4).hex())")
    fresh.exec("z = 3")
    fresh.ok("stop")
    parted = fresh("resume", "--session", "part")
    assert parted.code == 10
    assert (parted.doc["divergence"]["cell"], parted.doc["divergence"]["call"]) == (2, 0)
    assert "--from-cell 2" in " ".join(parted.doc["warnings"])
    assert fresh.exec("print(x, 'z' in globals())")["stdout"] == "1 False\n"
    fresh.ok("stop")
    live = fresh.ok("resume", "--session", "part", "--live")
    assert live["divergence"] is None
    assert fresh.exec("print(x, len(y) > 0)")["stdout"] == "1 True\n"


def test_a_key_is_in_no_record_and_no_bundle(fresh, log_file, tmp_path):
    key = "sk-sentinel-0123456789-abcdefghijklmnop"
    with CountingServer() as server:
        env = {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": server.openai_url}
        fresh.start(log_file, "--session", "keyed", "--provider", "openai", "--model", "m", env=env)
        fresh.exec("FINAL(llm_query('hello'))")
        for option in ((), ("--redact",), ("--include-input",)):
            fresh.ok("export", "--session", "keyed", "-o", str(tmp_path / "run.rlm"), *option)
        for path in [tmp_path / "run.rlm", *(fresh.path / "sessions" / "keyed").iterdir()]:
            assert path.is_dir() or key.encode() not in path.read_bytes(), path
        fresh.exec(f"leaked = {key!r}")
        refused = fresh("export", "--session", "keyed", "-o", str(tmp_path / "leak.rlm"))
        assert refused.code == 5
        assert key not in refused.out.decode() + refused.err
        assert not (tmp_path / "leak.rlm").exists()
        fresh.ok("export", "--session", "keyed", "-o", str(tmp_path / "leak.rlm"), "--redact")
        fresh.ok("stop")


def test_against_runs_live_with_another_model_and_compares(recorded, fresh):
    fresh.ok("stop")
    done = fresh.ok("replay", str(recorded), "--against", "other-model", "--provider", "scripted", "--budget", "20")
    assert done["same_input"] is True
    assert (done["a"]["model"], done["b"]["model"]) == ("scripted", "other-model")
    assert done["final"]["same"] is False
    assert done["calls_differing"] == 12
    assert fresh.ok("list")["sessions"] == []
    assert {run["session"] for run in fresh.ok("history")["runs"]} == {"one", done["session"]}


def test_history_finds_and_forget_removes_every_trace(fresh, log_file):
    fresh(
        "run", "How many WARNINGS are there?", "--input", str(log_file), "--provider", "scripted", "--session", "asked"
    )
    fresh.start(log_file, "--session", "other")
    fresh.exec("llm_query('a private prompt')")
    fresh.ok("stop", "--all")
    found = fresh.ok("history", "--find", "warnings")["runs"]
    assert [run["session"] for run in found] == ["asked"]
    assert found[0]["question"] == "How many WARNINGS are there?"
    assert {run["session"] for run in fresh.ok("history")["runs"]} == {"asked", "other"}
    assert fresh.ok("forget", "other")["forgotten"] is True
    assert fresh("forget", "other").code == 4
    assert [run["session"] for run in fresh.ok("history")["runs"]] == ["asked"]
    assert not (fresh.path / "sessions" / "other").exists()
    fresh.ok("gc", "--older-than", "0")
    assert fresh.ok("history")["runs"] == []
    fresh.ok("broker", "stop")
    eventually(lambda: not (fresh.path / "ledger.db-wal").exists(), "the ledger is open")
    import sqlite3  # noqa: PLC0415 - a look past our own code

    with sqlite3.connect(fresh.path / "cache" / "answers.db") as answers:
        assert answers.execute("SELECT COUNT(*) FROM answers").fetchone() == (0,)
    with sqlite3.connect(fresh.path / "ledger.db") as ledger:
        names = [name for (name,) in ledger.execute("SELECT name FROM accounts")]
        prompts = ledger.execute("SELECT COUNT(*) FROM attempts WHERE prompt_sha256 != ''").fetchone()
    assert not [name for name in names if "other" in name or "asked" in name]
    assert prompts == (0,)


def test_a_refused_bundle_is_one_line_and_exit_11(recorded, elsewhere, tmp_path):
    raw = bytearray(recorded.read_bytes())
    raw[len(raw) // 2] ^= 1
    bad = tmp_path / "bad.rlm"
    bad.write_bytes(raw)
    for command in ("verify", "replay"):
        result = elsewhere(command, str(bad))
        assert result.code == 11
        assert result.error["kind"] == "bundle"
        assert len(result.err.strip().splitlines()) == 1
    assert json.loads(elsewhere("diff", str(bad), str(bad)).out)["error"]["kind"] == "bundle"


def test_text_output_ends_with_one_status_line(recorded, fresh, log_file, tmp_path):
    fresh.ok("stop")
    texts = [
        fresh("replay", str(recorded), "--format", "text"),
        fresh("diff", "one", str(recorded), "--format", "text"),
        fresh("history", "--format", "text"),
        fresh("verify", str(recorded), "--format", "text"),
        fresh("export", "--session", "one", "-o", str(tmp_path / "x.rlm"), "--format", "text"),
        fresh("report", "one", "-o", str(tmp_path / "x.html"), "--format", "text"),
    ]
    for text in texts:
        assert text.code == 0
        assert text.status_line.startswith("[rlm] ok")
    assert fresh("resume", "--session", "nobody", "--format", "text").status_line.startswith("[rlm] error")


def test_a_changed_input_is_told_when_a_session_is_reopened(fresh, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\n")
    fresh.start(path, "--session", "moved")
    fresh.exec("print(len(context))")
    fresh.ok("stop")
    path.write_text("one two\n")
    told = " ".join(fresh.ok("resume", "--session", "moved")["warnings"])
    assert "changed" in told
    assert "did not do quite what it did at first" in told


def test_reports_are_made_from_sessions_and_bundles(recorded, fresh, elsewhere, tmp_path):
    for name, kind in (("a.html", "html"), ("a.json", "inspect"), ("b.json", "otel")):
        done = elsewhere.ok("report", str(recorded), "--format", kind, "-o", str(tmp_path / name))
        assert (done["kind"], done["calls"]) == (kind, 12)
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert fresh.ok("report", "--session", "one", "-o", str(tmp_path / "live.html"))["cells"] == 3
    assert fresh("report", "nobody", "-o", str(tmp_path / "x")).code == 4
