"""An engine that remaps users: the container is in a user namespace, as with a rootless engine, and its device nodes are mounts of the host's."""

import pytest

from tests.support.cli import Home
from tests.support.engines import engine, needs_dockerd

pytestmark = [pytest.mark.container, needs_dockerd]


@pytest.fixture(scope="module")
def remapping():
    with engine("--userns-remap=default") as socket:
        yield f"unix://{socket}"


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
