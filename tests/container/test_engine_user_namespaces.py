"""An engine that remaps users: the container is in a user namespace, as with a rootless engine, and its device nodes are mounts of the host's."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from rlm_sandbox.container.engine import Engine
from rlm_sandbox.errors import EngineError
from tests.support.cli import Home, eventually

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts a dockerd of its own, as root"),
]


@pytest.fixture(scope="module")
def remapping():
    """The address of a second engine, for as long as these tests run."""
    with tempfile.TemporaryDirectory(prefix="engine-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # the mapped users must come through
        yield from running(folder)


def running(folder):
    address, log = f"unix://{folder}/docker.sock", folder / "log"
    command = [
        "dockerd", "--userns-remap=default", f"--host={address}", f"--data-root={folder}/data",
        f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false",
    ]  # fmt: skip
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        eventually(lambda: answers(address) or daemon.poll() is not None, "the engine did not start", within=60)
        if daemon.poll() is not None:
            pytest.fail(f"no engine that remaps users can be started here: {log.read_text()[-500:]}")
        yield address
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def answers(address):
    try:
        Engine.connect(address).close()
    except EngineError:
        return False
    return True


@pytest.fixture
def home(tmp_path, remapping):
    made = Home(tmp_path / "home", DOCKER_HOST=remapping)
    yield made
    made("stop", "--all")
    made.close()


@pytest.mark.parametrize("options", [[], ["--snapshot"]])
def test_a_session_starts_reads_its_input_and_asks(home, log_file, options):
    home.start(log_file, *options)
    done = home.exec("print(len(grep('ERROR')), llm_query('hi') != '')")
    assert (done["status"], done["stdout"]) == ("ok", "2 True\n")


def test_a_directory_is_read(home, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("hello")
    home.start(tmp_path / "in")
    assert home.exec("print(files['a.txt'])")["stdout"] == "hello\n"


def test_the_attacks_are_blocked_there_too(home):
    result = home("doctor", "--deep", timeout=240)
    assert result.code == 0, result
    assert all(attack["blocked"] for attack in result.doc["attacks"])
    levels = {check["check"]: check["level"] for check in result.doc["checks"]}
    assert levels["user namespaces"] == "ok"
    assert "fail" not in levels.values()
    (told,) = [check["detail"] for check in result.doc["checks"] if check["check"] == "user namespaces"]
    assert told == "the engine remaps users"
