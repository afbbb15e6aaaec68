"""The engine script's decisions, with every program it calls replaced, so that no test starts or stops a real engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

SHIMS = {
    "python": 'test -e "$STATE/up"',
    "id": 'case "$1" in -u) echo "$FAKE_UID";; *) echo someone;; esac',
    "apt-get": 'echo "apt-get $*" >>"$STATE/calls"',
    "setsid": 'exec "$@"',
    "dockerd": 'echo dockerd >>"$STATE/calls"; echo "cannot mount cgroup"; test -e "$STATE/broken" || : >"$STATE/up"',
    "iptables": "true",
    "systemctl": 'echo "systemctl $*" >>"$STATE/calls"; : >"$STATE/up"',
    "sleep": "exec /bin/sleep 0.05",
}


class Machine:
    """A machine as the script sees it: shimmed programs, and a state folder that records what was called."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.bin = folder / "bin"
        self.run_dir = folder / "run"
        for made in (self.state, self.bin, self.run_dir):
            made.mkdir()
        for name, body in SHIMS.items():
            self.shim(name, body)
        for name in ("dirname", "cat", "tail", "rm", "ln"):
            (self.bin / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
        self.env = {
            "PATH": str(self.bin),
            "STATE": str(self.state),
            "FAKE_UID": "0",
            "ENGINE_RUN": str(self.run_dir),
            "ENGINE_LOG": str(folder / "dockerd.log"),
            "ENGINE_PATIENCE": "15",
            "ENGINE_SYSTEMD": str(folder / "no-systemd"),
            "ENGINE_PYTHON": str(self.bin / "python"),
        }

    def shim(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def set(self, *names: str) -> None:
        for name in names:
            (self.state / name).touch()

    def calls(self) -> list[str]:
        path = self.state / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", str(ROOT / "scripts/engine.sh")],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_an_engine_that_answers_is_left_alone(machine):
    machine.set("up")
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr, machine.calls()) == (0, "", "", [])


def test_root_on_debian_installs_the_engine_and_starts_it(machine):
    (machine.bin / "dockerd").rename(machine.bin / "hidden")
    machine.shim(
        "apt-get", f'echo "apt-get $*" >>"$STATE/calls"; ln -sf "{machine.bin}/hidden" "{machine.bin}/dockerd"'
    )
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends docker.io iptables",
        "dockerd",
    ]


def test_an_installed_engine_is_started_without_installing_anything(machine):
    assert machine.run().returncode == 0
    assert machine.calls() == ["dockerd"]


def test_a_service_manager_starts_the_engine_where_there_is_one(machine, tmp_path):
    machine.env["ENGINE_SYSTEMD"] = str(tmp_path)
    assert machine.run().returncode == 0
    assert machine.calls() == ["systemctl start docker"]


def test_pid_files_of_daemons_that_are_gone_do_not_stop_the_start(machine):
    stale = machine.run_dir / "docker.pid"
    nested = machine.run_dir / "docker/containerd/containerd.pid"
    nested.parent.mkdir(parents=True)
    stale.write_text(str(os.getpid()))  # alive, but another program
    nested.write_text("999999999")
    assert machine.run().returncode == 0
    assert not stale.exists()
    assert not nested.exists()


def test_a_daemon_that_runs_but_does_not_answer_is_neither_killed_nor_doubled(machine, tmp_path):
    fake = tmp_path / "dockerd"
    fake.symlink_to(sys.executable)
    process = subprocess.Popen(
        [str(fake), "-c", "import time; open('/proc/self/comm', 'w').write('dockerd'); time.sleep(60)"]
    )
    try:
        (machine.run_dir / "docker.pid").write_text(str(process.pid))
        done = machine.run()
        assert done.returncode == 3
        assert "does not answer" in done.stderr
        assert machine.calls() == []
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_without_root_it_says_exactly_what_to_run(machine):
    machine.env["FAKE_UID"] = "1000"
    done = machine.run()
    assert done.returncode == 3
    assert machine.calls() == []
    for command in ("apt-get install -y docker.io", "systemctl start docker", "usermod -aG docker someone"):
        assert command in done.stderr


def test_root_on_another_system_is_told_too(machine):
    (machine.bin / "apt-get").unlink()
    done = machine.run()
    assert done.returncode == 3
    assert "no Docker engine answers" in done.stderr


def test_a_remote_engine_that_is_down_is_not_replaced_by_a_local_one(machine):
    machine.env["DOCKER_HOST"] = "tcp://192.0.2.1:2376"
    done = machine.run()
    assert done.returncode == 3
    assert "DOCKER_HOST=tcp://192.0.2.1:2376" in done.stderr
    assert machine.calls() == []


def test_a_daemon_that_cannot_start_shows_the_end_of_its_log(machine):
    machine.set("broken")
    done = machine.run()
    assert done.returncode == 3
    assert "cannot mount cgroup" in done.stderr


@pytest.mark.parametrize(
    "given", ["a b", 'it\'s "so"', "cost $5 or $$x or $(HOME)#y", "two\nlines", "back\\slash; echo `id`"]
)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_make_hands_input_and_question_on_as_they_were_given(tmp_path, given, way):
    """Up to the recipe: what the demo's program would get, without running it."""
    recipe = 'show:\n\t@printf "%s|%s" "$$INPUT" "$$QUESTION"\n'
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8") + recipe, encoding="utf-8")
    words = [f"INPUT={given}", f"QUESTION={given}"]
    pairs = dict(word.split("=", 1) for word in words) if way == "environment" else {}
    done = subprocess.run(
        ["make", "-s", "-C", str(tmp_path), "show", *([] if pairs else words)],
        env={**os.environ, **pairs}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{given}|{given}"
