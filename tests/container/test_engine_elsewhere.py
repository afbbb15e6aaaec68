"""An engine on another machine: it looks up the input's path on its own disk, where another file of the same size may lie.

The other machine is an engine in a mount namespace of its own, reached by a program named ssh that forwards its socket.
"""

import sys

import pytest

from tests.support.cli import Home
from tests.support.engines import engine, needs_dockerd

pytestmark = [pytest.mark.container, needs_dockerd]

SSH = """#!{python}
import os, sys, signal
local, _ = sys.argv[sys.argv.index("-L") + 1].split(":")
os.symlink({socket!r}, local)
signal.pause()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two files that are the same here and there, and one that is another there."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "same.log").write_text("a WARN line\n" * 1000)
    (folder / "other.log").write_text("a WARN line\n" * 1000)
    (folder / "there.log").write_text("a INFO line\n" * 1000)
    (folder / "long.log").write_text("a WARN line\n" * 6_000_000)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def elsewhere(inputs):
    with engine(mounts=f"mount --bind {inputs}/there.log {inputs}/other.log") as socket:
        yield socket


@pytest.fixture
def home(tmp_path, elsewhere, monkeypatch):
    tool = tmp_path / "bin" / "ssh"
    tool.parent.mkdir()
    tool.write_text(SSH.format(python=sys.executable, socket=str(elsewhere)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    made = Home(tmp_path / "home", DOCKER_HOST="ssh://someone@far.example")
    made.witness = f"unix://{elsewhere}"
    yield made
    made("stop", "--all")
    made.close()


def test_a_file_that_is_another_there_is_refused_before_any_code_runs(home, inputs):
    result = home("start", "--input", str(inputs / "other.log"), "--provider", "scripted")
    assert (result.code, result.error["kind"]) == (3, "control")
    assert "its bytes are others than those of the file here" in result.error["message"]
    assert "another machine" in result.error["hint"]
    assert home.ok("list")["sessions"] == []


def test_a_file_that_is_the_same_there_is_read_and_its_digest_recorded(home, inputs, tmp_path):
    started = home.start(inputs / "same.log")
    assert started["warnings"] == []
    assert home.exec("print(len(grep('WARN')))")["stdout"] == "1000\n"
    home.ok("export", "-o", str(tmp_path / "run.rlm"))
    assert home.ok("verify", str(tmp_path / "run.rlm"))["input_sha256"] is not None


def test_of_a_long_file_it_is_said_that_not_all_was_compared_and_no_digest_is_recorded(home, inputs, tmp_path):
    started = home.start(inputs / "long.log")
    (warning,) = started["warnings"]
    assert "of its 72000000 bytes were compared" in warning
    home.ok("stop")
    home.ok("export", "--session", started["session"], "-o", str(tmp_path / "run.rlm"))
    assert home.ok("verify", str(tmp_path / "run.rlm"))["input_sha256"] is None
