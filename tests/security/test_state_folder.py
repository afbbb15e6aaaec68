"""The state folder, the names below it and the engine's address, in the hands of somebody who means harm."""

import os
import socket
import stat
import threading

import pytest

from tests.support.cli import Home

pytestmark = pytest.mark.security

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")


def refuses(home, log_file, *args, **options):
    result = home("start", "--input", str(log_file), "--provider", "scripted", *args, **options)
    assert result.code in {2, 3, 5}, result
    assert result.error["hint"]
    assert len(result.err.splitlines()) == 1
    return result


@as_root
def test_a_state_folder_that_another_user_made_first_is_not_used(tmp_path, log_file):
    path = tmp_path / "home"
    path.mkdir(mode=0o777)
    os.chown(path, 65534, 65534)
    refuses(Home(path), log_file)
    assert list(path.iterdir()) == []


@as_root
@pytest.mark.parametrize(
    "name", ["run", "sessions", "ledger.db", "run/broker.sock", "run/broker.lock", "run/broker.log"]
)
def test_a_part_of_it_that_is_a_link_elsewhere_is_not_written_through(tmp_path, log_file, name):
    """A folder of another user's would be refused; this is one that was ours and was tampered with."""
    path, victim = tmp_path / "home", tmp_path / "victim"
    path.mkdir(mode=0o700)
    victim.mkdir()
    kept = victim / "kept"
    kept.write_text("kept")
    (path / name).parent.mkdir(exist_ok=True, mode=0o700)
    folder = name in {"run", "sessions"}
    (path / name).symlink_to(victim if folder else kept)
    home = Home(path)
    result = home("start", "--input", str(log_file), "--provider", "scripted", "--memory", "128m")
    home("stop", "--all")
    home("broker", "stop")
    if not folder:
        assert kept.read_text() == "kept" or result.code != 0
    assert "internal" not in result.text, result


def test_loose_rights_are_tightened_before_anything_is_put_there(tmp_path, log_file):
    path = tmp_path / "home"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    home = Home(path)
    with home.session(log_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        path.chmod(0o755)  # while its daemon runs
        with home.session(log_file):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
    home.close()


HOSTILE = [
    "../escape",
    "..",
    ".",
    "a/b",
    "/etc/passwd",
    "-rf",
    "",
    " ",
    "a" * 65,
    "a\nb",
    "\x1b[31m",
    "näme",
    "a\x00b",
    "CON:",
    ".hidden",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_session_cannot_be_named_like_a_path_an_option_or_a_trick(cli, log_file, name):
    before = sorted(path.name for path in cli.path.rglob("*"))
    if "\0" in name:
        with pytest.raises(ValueError, match="null byte"):
            cli("start", "--input", str(log_file), "--session", name)
        return
    result = cli("start", "--input", str(log_file), "--provider", "scripted", f"--session={name}")
    if name == "":
        assert result.code in {0, 2}
        if result.code == 0:
            cli.ok("stop", "--session", result.doc["session"])
        return
    assert (result.code, result.error["kind"]) == (2, "usage"), result
    assert "\x1b" not in result.text + result.err
    assert sorted(path.name for path in cli.path.rglob("*")) == before


@pytest.mark.parametrize("command", ["exec", "final", "stop", "status", "budget"])
def test_no_command_takes_a_path_for_a_name(cli, log_file, command):
    for name in ("../../etc/passwd", "..", "/etc/passwd"):
        args = ("-c", "1") if command == "exec" else ()
        result = cli(command, "--session", name, *args)
        assert result.code in {0, 2, 4}, result
        assert b"root:" not in result.out


def test_a_session_folder_of_ones_own_is_used_and_a_link_in_it_not_followed(fresh, log_file, tmp_path):
    folder, victim = tmp_path / "mine", tmp_path / "victim.txt"
    victim.write_text("kept")
    (folder / "named").mkdir(parents=True)
    (folder / "named" / "final.txt").symlink_to(victim)
    (folder / "named" / ".final.part").symlink_to(victim)
    (folder / "named" / "stdout-1.txt").symlink_to(victim)
    result = fresh(
        "start",
        "--input",
        str(log_file),
        "--provider",
        "scripted",
        "--session",
        "named",
        env={"RLM_SESSION_DIR": str(folder)},
    )
    if result.code == 0:
        fresh("exec", "--session", "named", "-c", "print('x' * 9999); FINAL('answer')")
    assert victim.read_text() == "kept"


@as_root
def test_a_session_folder_of_another_user_is_not_used(fresh, log_file, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o777)
    os.chown(folder, 65534, 65534)
    (folder / "named").mkdir()
    os.chown(folder / "named", 65534, 65534)
    result = fresh(
        "start",
        "--input",
        str(log_file),
        "--provider",
        "scripted",
        "--session",
        "named",
        env={"RLM_SESSION_DIR": str(folder)},
    )
    assert result.code in {2, 3}, "whoever owns the folder could read the answers and replace them"


class Impostor:
    """Answers every connection with the same bytes, as something that is no engine would."""

    def __init__(self, answer):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(1)
                try:
                    client.recv(4096)
                    client.sendall(self._answer)
                except OSError:
                    pass

    def close(self):
        self._listener.close()


ANSWERS = {
    "nothing": b"",
    "garbage": b"\xff\x00" * 200,
    "a page": b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n<html>\x1b[31m</html>\r\n",
    "a lie": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n{"ApiVersion":"1.999"}',
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_answers_at_docker_host_and_is_no_engine_is_an_engine_error(fresh, log_file, name):
    impostor = Impostor(ANSWERS[name])
    result = refuses(fresh, log_file, env={"DOCKER_HOST": f"tcp://127.0.0.1:{impostor.port}"})
    impostor.close()
    assert result.error["kind"] == "engine"
    assert "\x1b" not in result.text + result.err


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "file:///etc/passwd", "ssh://-oProxyCommand=touch+/tmp/x/", "unix:///etc/passwd", "http://"],
)
def test_an_address_of_no_engine_is_refused_in_one_line(fresh, log_file, address):
    if not address:
        pytest.skip("an empty variable is no variable")
    result = refuses(fresh, log_file, env={"DOCKER_HOST": address})
    assert result.error["kind"] in {"engine", "usage", "prerequisite"}


@pytest.mark.parametrize(
    "ref", ["alpine:latest", "../base", "", "-v", "base:other", "http://x/y", "a" * 500, "UPPER", "\x1b[31m"]
)
def test_an_image_that_is_not_ours_is_not_run(cli, log_file, ref):
    before = cli.containers()
    result = cli("start", "--input", str(log_file), "--provider", "scripted", f"--image={ref}")
    if result.code == 0:
        cli.ok("stop", "--session", result.doc["session"])
        assert ref == "", "an empty option is none"
        return
    assert result.code in {2, 3}, result
    assert "\x1b" not in result.text + result.err
    assert cli.containers() == before
