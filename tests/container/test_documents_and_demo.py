"""What the README shows is run as it stands there, and the demo as ``make demo`` runs it, only smaller."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM

pytestmark = pytest.mark.container

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(heading, language):
    """Return the first code block of a language below a heading."""
    return re.search(rf"## {heading}\n.*?```{language}\n(.*?)```", README, re.DOTALL)[1]


def run(home, command, cwd, **options):
    env = home.env()
    env["PATH"] = f"{Path(PROGRAM).parent}:{env['PATH']}"
    return subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **options,
    )


def test_the_session_of_the_readme_runs_as_it_stands(fresh, log_file, tmp_path):
    shown = block("A session", "sh")
    script = shown.replace("/var/log/syslog", str(log_file)).replace("--provider local", "--provider scripted")
    assert script.count(str(log_file)) == 1
    script = script.replace("rlm-sandbox final", "rlm-sandbox final -o answer.json")
    done = run(fresh, ["sh", "-euc", script], tmp_path)
    assert done.returncode == 0, done.stderr
    notes = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert len(notes) == 2
    assert all(isinstance(note, str) and note for note in notes)


def test_the_table_of_the_readme_is_read_as_it_stands(fresh, tmp_path):
    tmp_path.chmod(0o755)
    table = tmp_path / "sales.csv"
    table.write_text("region,amount\nnorth,1\nsouth,2\nnorth,40\n", encoding="utf-8")
    table.chmod(0o644)
    script = block("Tables", "sh").replace("rlm-sandbox final", "rlm-sandbox final -o answer.txt")
    done = run(fresh, ["sh", "-euc", script], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8") == "north: 41\nsouth: 2"


def test_the_python_of_the_readme_runs_as_it_stands(fresh, log_file, tmp_path):
    shown = block("From Python", "python")
    program = shown.replace('"/var/log/syslog"', repr(str(log_file))).replace('provider="local"', 'provider="scripted"')
    done = run(fresh, [sys.executable, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok 2 lines\n"


def test_the_demo_counts_what_was_planted_and_shows_what_was_denied(fresh, tmp_path):
    demo = [sys.executable, "-m", "rlm_sandbox.demo", "--size-mb", "3", "--provider", "scripted"]
    done = run(fresh, demo, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "12 of 12 incidents counted exactly." in lines
    assert len([line for line in lines if line.startswith("  denied ")]) == 12
    assert any(line.startswith("budget: 16 of 100 calls") for line in lines)
    assert lines[-1].startswith("answer: ")
    assert fresh("list").doc["sessions"] == []


def test_the_demo_takes_an_input_and_a_question_of_the_users_own(fresh, tmp_path):
    log = tmp_path / "my own.log"
    log.write_text("ERROR the 'quoted' thing broke\nfine\n" * 3, encoding="utf-8")
    demo = [
        sys.executable,
        "-m",
        "rlm_sandbox.demo",
        "--provider",
        "scripted",
        "--input",
        str(log),
        "--question",
        'What\'s "wrong"?',
    ]
    done = run(fresh, demo, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| 3 | ERROR | 1-5 |" in done.stdout
    assert "planted" not in done.stdout


def test_a_demo_that_cannot_run_ends_with_the_products_own_failure(fresh, tmp_path):
    demo = [sys.executable, "-m", "rlm_sandbox.demo", "--provider", "scripted", "--input", str(tmp_path / "missing")]
    done = run(fresh, demo, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "missing" in done.stderr
