"""The fuzz target of the channel, for a few seconds: it must find nothing, and it must be able to."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlm_sandbox.wire import messages as m

pytestmark = pytest.mark.security

TARGET = Path(__file__).parents[1] / "fuzz" / "fuzz_channel.py"
SECONDS = 8


@pytest.fixture
def corpus(tmp_path):
    """One valid message of each kind of guest, so that a short run starts deep in the grammar."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or platform")
    given = [
        m.Output(1, b"x"), m.Expired(1), m.CellClosed(1, 0, 0), m.KernelUp(2),
        m.KernelDown(gen=1, cell=1, cause="exit", code=0, expired=False, dropped=0), m.Unshare(1), m.Share(1, b"s"),
        m.AskBudget(1), m.Cancel(1), m.Result(cell=1, status="ok", variables=[], variables_total=0, warnings=[]),
        m.Final(cell=1, kind="direct", name=None, length=1, last=True, payload=b"x"),
    ]  # fmt: skip
    for number, message in enumerate(given):
        (tmp_path / f"{number}.frame").write_bytes(b"\0" + message.encode())
        (tmp_path / f"{number}.header").write_bytes(b"\0" + message.encode()[8:])
    return tmp_path


def fuzz(target, corpus, *options):
    limits = [f"-max_total_time={SECONDS}", "-rss_limit_mb=1024", "-timeout=10", "-max_len=4096"]
    return subprocess.run(
        [sys.executable, str(target), *limits, *options, str(corpus)],
        capture_output=True, text=True, cwd=corpus, timeout=120, check=False,
    )  # fmt: skip


def test_no_bytes_of_a_guest_do_anything_but_speak_or_break_the_rules(corpus):
    done = fuzz(TARGET, corpus)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "DONE" in done.stderr or "Done" in done.stderr


def test_the_fuzzer_finds_a_planted_mistake(corpus, tmp_path_factory):
    """The positive control: a parser that lets another exception out for one kind of message."""
    planted = TARGET.read_text(encoding="utf-8").replace(
        "def one_input(data: bytes) -> None:",
        "def one_input(data: bytes) -> None:\n    if b'ask_budget' in data and b'-' in data: raise KeyError(data)",
    )
    target = tmp_path_factory.mktemp("planted") / "tests" / "fuzz" / "fuzz_channel.py"
    target.parent.mkdir(parents=True)
    target.write_text(planted.replace("Path(__file__).resolve().parents[2]", repr(str(TARGET.parents[2]))))
    done = fuzz(target, corpus, "-max_total_time=40")
    assert done.returncode != 0
    assert "KeyError" in done.stdout + done.stderr
