"""What ``exec``, ``wait`` and ``interrupt`` promise about one cell: status, output, variables, how it may end."""

import re
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.container


def test_a_cell_sees_the_input_and_reports_its_output(live):
    done = live.exec("print(context[:4], len(context))")
    assert (done["status"], done["error"], done["final"]) == ("ok", None, None)
    assert done["stdout"] == f"2026 {live.started['context_total_chars']}\n"
    assert done["stdout_len"] == len(done["stdout"])
    assert done["stdout_truncated"] is False
    assert done["stdout_full_path"] is None


def test_code_comes_by_option_file_or_standard_input(live, tmp_path):
    cell = tmp_path / "cell with space.py"
    cell.write_text("print('from a file: é')\n", encoding="utf-8")
    assert live.ok("exec", "-c", "print('by option')")["stdout"] == "by option\n"
    assert live.ok("exec", "-f", str(cell))["stdout"] == "from a file: é\n"
    assert live.exec("print('by pipe')\n")["stdout"] == "by pipe\n"
    assert live.ok("exec", "-f", "-", stdin="print('dash')")["stdout"] == "dash\n"


def test_code_given_twice_or_in_no_encoding_is_a_usage_error(live, tmp_path):
    cell = tmp_path / "cell.py"
    cell.write_bytes(b"print('\xff')\n")
    assert live("exec", "-c", "1", "-f", str(cell)).code == 2
    assert live("exec", "-f", str(cell)).code == 2
    assert live("exec", "-f", str(tmp_path / "absent.py")).code == 2


def test_names_imports_functions_and_generators_live_on_between_cells(live):
    live.exec("import json as j\ndef twice(n): return 2 * n\ncounter = iter(range(9))\nnext(counter)")
    assert live.exec("print(j.dumps(twice(21)), next(counter))")["stdout"] == "42 1\n"


def test_variables_lists_what_cells_made_and_not_the_helpers(live):
    done = live.exec("import re\nhits = list(grep('ERROR'))\ntotal = len(hits)\n_private = 1\ndef helper(): pass")
    found = {entry["name"]: entry for entry in done["variables"]}
    assert found["total"] == {"name": "total", "type": "int", "len": None}
    assert found["hits"]["len"] == 2
    given = "context context_files files grep lines chunks peek llm_query llm_query_batch FINAL FINAL_VAR SHOW_VARS"
    assert not found.keys() & set(given.split())
    assert not [name for name in found if name.startswith("__")]


def test_an_exception_is_data_and_not_a_failure(live):
    result = live("exec", "-c", "1/0")
    assert result.code == 0
    assert result.doc["status"] == "error"
    assert "ZeroDivisionError" in result.doc["error"]
    assert result.err == ""


def test_a_syntax_error_is_reported_with_its_line(live):
    done = live.exec("x = 1\ny = = 2\n")
    assert done["status"] == "error"
    assert "SyntaxError" in done["error"]
    assert "y = = 2" in done["error"]


@pytest.mark.parametrize(
    "code", ["import sys; kept = 5; sys.exit(0)", "kept = 5; raise SystemExit", "kept = 5; exit()"]
)
def test_sys_exit_ends_the_cell_and_keeps_the_session_and_its_variables(live, code):
    assert live.exec(code)["status"] in {"ok", "error"}
    assert live.exec("print(kept)")["stdout"] == "5\n"


def test_os_exit_is_a_kernel_death_and_the_next_cell_runs(live):
    done = live.exec("lost = 1\nimport os; os._exit(3)")
    assert done["status"] == "kernel_died"
    assert "3" in done["error"]
    assert done["variables"] == []
    after = live.exec("print('lost' in globals(), context[:4])")
    assert (after["status"], after["stdout"]) == ("ok", "False 2026\n")


def test_a_segfault_is_a_kernel_death_and_says_the_signal(live):
    done = live.exec("print('before', flush=True)\nimport ctypes; ctypes.string_at(0)")
    assert done["status"] == "kernel_died"
    assert "signal 11" in done["error"]
    assert "before" in done["stdout"]
    assert live.exec("print(1)")["stdout"] == "1\n"


def test_output_of_c_code_and_of_child_processes_is_captured_in_order(live):
    done = live.exec(
        "import os, subprocess, sys\n"
        "os.write(1, b'one\\n'); print('two', flush=True); os.write(2, b'three\\n')\n"
        "subprocess.run([sys.executable, '-c', 'print(\"four\")'])"
    )
    assert done["stdout"] == "one\ntwo\nthree\nfour\n"


def test_a_cell_over_its_timeout_says_timeout_and_the_session_goes_on(live):
    done = live.exec("kept = 7\nwhile True: pass", "--timeout", "0.7")
    assert done["status"] == "timeout"
    assert "0.7" in done["error"]
    assert live.exec("print(kept)")["stdout"] == "7\n"


def test_a_sleeping_cell_is_interrupted_by_its_timeout_too(live):
    assert live.exec("import time; time.sleep(600)", "--timeout", "0.5")["status"] == "timeout"


def test_a_cell_that_ignores_the_interrupt_loses_its_interpreter(live):
    done = live.exec(
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException: pass", "--timeout", "0.5"
    )
    assert done["status"] in {"kernel_died", "timeout"}
    assert "timeout" in done["error"] or "time" in done["error"]
    assert live.exec("print(2)")["stdout"] == "2\n"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_no_time_is_a_usage_error(live, value):
    assert live("exec", "-c", "1", "--timeout", value).code in {2, 5}


def test_beyond_wait_the_status_is_running_and_the_cell_goes_on(live):
    first = live.exec("print('begun', flush=True)\nimport time; time.sleep(1.5)\nprint('ended')", "--wait", "0.4")
    assert (first["status"], first["stdout"]) == ("running", "begun\n")
    assert live.ok("status")["status"] == "running"
    last = live.ok("wait", "--wait", "30")
    assert (last["status"], last["cell"], last["stdout"]) == ("ok", first["cell"], "begun\nended\n")
    assert live.ok("wait")["cell"] == first["cell"], "waiting again returns the last result"


def test_wait_zero_returns_at_once(live):
    began = time.monotonic()
    assert live.exec("import time; time.sleep(20)", "--wait", "0")["status"] == "running"
    assert time.monotonic() - began < 10
    assert live.ok("interrupt", "--wait", "20")["status"] == "interrupted"


def test_interrupt_raises_in_the_cell_as_ctrl_c_would(live):
    live.exec("import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('caught')", "--wait", "0.3")
    done = live.ok("interrupt", "--wait", "20")
    assert done["stdout"] == "caught\n"
    assert done["status"] in {"ok", "interrupted"}


def test_interrupting_when_nothing_runs_is_harmless(live):
    before = live.exec("settled = 1")
    assert live.ok("interrupt")["cell"] == before["cell"]
    assert live.exec("print(settled)")["stdout"] == "1\n"


def test_a_second_cell_waits_for_its_turn(live):
    live.exec("import time; time.sleep(1); order = ['first']", "--wait", "0.1")
    done = live.exec("order.append('second'); print(order)", "--wait", "30")
    assert done["stdout"] == "['first', 'second']\n"


def test_a_second_cell_that_may_not_wait_is_refused_and_not_run(live):
    live.exec("import time; ran = []; time.sleep(2)", "--wait", "0")
    result = live("exec", "--wait", "0.2", stdin="ran.append(1)")
    assert (result.code, result.error["kind"]) == (9, "busy")
    assert live.ok("wait", "--wait", "30")["status"] == "ok"
    assert live.exec("print(ran)")["stdout"] == "[]\n"


def test_stdout_is_bounded_and_the_whole_lies_in_a_file(live):
    done = live.exec("for i in range(3000): print(f'line {i}')")
    assert done["stdout_truncated"] is True
    assert done["stdout"].startswith("line 0\n")
    assert done["stdout"].endswith("line 2999\n")
    assert len(done["stdout"]) < 2048 + 100
    whole = "".join(f"line {i}\n" for i in range(3000))
    assert done["stdout_len"] == len(whole)
    assert Path(done["stdout_full_path"]).read_text(encoding="utf-8") == whole


def test_stdout_of_exactly_the_limit_is_whole(live):
    done = live.exec("print('x' * 2047)")
    assert (done["stdout_truncated"], len(done["stdout"])) == (False, 2048)


def test_the_bound_on_stdout_is_read_at_every_exec(live):
    done = live.exec("print('abcdefghij' * 50)", env={"RLM_STDOUT_MAX": "20"})
    assert done["stdout"].startswith("abcdefghij")
    assert done["stdout_truncated"] is True
    assert len(re.sub(r"\[.*\]", "", done["stdout"]).replace("\n", "")) == 19
    assert live.exec("print('y' * 5000)", env={"RLM_STDOUT_MAX": "10000"})["stdout"] == "y" * 5000 + "\n"


def test_a_flood_of_output_is_cut_and_said_to_be(live):
    done = live.exec("import os\nblock = b'z' * 65536\nfor _ in range(2048): os.write(1, block)", "--timeout", "100")
    assert done["status"] == "ok"
    assert done["stdout_truncated"] is True
    assert len(done["stdout"]) < 2200
    assert any("not kept" in text for text in done["warnings"])


def test_the_environment_of_a_cell_holds_nothing_of_the_hosts(live):
    done = live.exec("import os; print(sorted(os.environ))", env={"ANTHROPIC_API_KEY": "sk-ant-test", "MY_SECRET": "s"})
    names = set(eval(done["stdout"]))  # our own cell's output
    assert {"PATH", "HOME", "LANG"} <= names
    assert not [name for name in names if "KEY" in name or "SECRET" in name or "RLM" in name or "PROXY" in name.upper()]
    assert names <= {
        "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "PYTHONHASHSEED", "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONNOUSERSITE", "PYTHONPATH", "MPLCONFIGDIR",
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
        "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "ARROW_NUM_THREADS", "TERM", "HOSTNAME", "USER", "LOGNAME",
        "PYTHON_CPU_COUNT", "VECLIB_MAXIMUM_THREADS", "MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL",
    }, names  # fmt: skip


def test_a_command_that_is_killed_leaves_its_cell_running(live):
    killed = live.home.spawn(
        "exec", "--session", live.id, "-c", "import time; time.sleep(1.5); survived = 1; print('whole')"
    )
    while live.ok("status")["status"] != "running":
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert live.ok("wait", "--wait", "30")["stdout"] == "whole\n"
    assert live.exec("print(survived)")["stdout"] == "1\n"


def test_an_out_of_memory_kill_says_memory_and_the_session_goes_on(cli, log_file):
    with cli.session(log_file, "--memory", "128m") as started:
        named = ("--session", started["session"])
        done = cli.exec("kept = 1\nhog = []\nwhile True: hog.append(bytearray(8 << 20))", *named)
        assert done["status"] in {"kernel_died", "error"}
        assert "memory" in done["error"].lower()
        assert cli.exec("print(3)", *named)["stdout"] == "3\n"
