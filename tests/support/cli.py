"""The command line as a user runs it: a process, its exit code, its two streams, and a state folder of its own.

A :class:`Home` knows how to prove that nothing is left of it: no container with its label, no daemon, no socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm_sandbox.container.gc import LABEL_HOME, home_digest
from rlm_sandbox.daemon.client import connect

PROGRAM = str(Path(sys.executable).with_name("rlm-sandbox"))

LEFT_S = 15.0
"""How long a container may take to go after its daemon was killed: the engine needs about one second on an idle machine."""

KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "DOCKER_HOST", "COVERAGE_PROCESS_START")
"""Of this process's environment; keys and ``RLM_*`` settings of whoever runs the tests have no place in them."""


@dataclass(frozen=True)
class Result:
    """How a command ended. ``doc`` is its JSON document; ``error`` the inner object of a failure."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8")

    @property
    def doc(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert isinstance(document, dict), self
        return document

    @property
    def error(self) -> dict[str, Any]:
        assert self.code != 0, self
        return self.doc["error"]

    @property
    def status_line(self) -> str:
        return self.text.splitlines()[-1]


class Home:
    """A state folder, the commands run on it, and what it must leave behind: nothing."""

    def __init__(self, path: Path, **environment: str) -> None:
        self.path = path
        self.environment = environment
        self.witness = environment.get("DOCKER_HOST")
        """Where the engine's own client finds the engine of this folder; None for its default."""

    def env(self, extra: dict[str, str | None] | None = None) -> dict[str, str]:
        merged = {name: os.environ[name] for name in KEPT if name in os.environ}
        changes = {"RLM_SANDBOX_HOME": str(self.path), **self.environment, **(extra or {})}
        for name, value in changes.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = value
        return merged

    def spawn(self, *args: str | bytes, env: dict[str, str | None] | None = None, **options: Any) -> subprocess.Popen:
        """Start a command without waiting for it."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([PROGRAM, *args], env=self.env(env), **pipes)

    def __call__(
        self,
        *args: str | bytes,
        stdin: str | bytes = b"",
        env: dict[str, str | None] | None = None,
        timeout: float = 120.0,
        cwd: Path | None = None,
    ) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [PROGRAM, *args], input=data, env=self.env(env), capture_output=True, timeout=timeout, cwd=cwd, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8"))

    def ok(self, *args: str | bytes, **options: Any) -> dict[str, Any]:
        """Run a command that must end with 0, and return its document."""
        result = self(*args, **options)
        assert result.code == 0, result
        return result.doc

    def exec(self, code: str, *args: str, **options: Any) -> dict[str, Any]:
        """Run a cell by standard input and return its document."""
        return self.ok("exec", *args, stdin=code, **options)

    def start(self, path: Any, *args: str, **options: Any) -> dict[str, Any]:
        """Start a session with the scripted provider and return its document."""
        provider = () if "--provider" in args else ("--provider", "scripted")
        return self.ok("start", "--input", os.fspath(path), *provider, *args, **options)

    @contextlib.contextmanager
    def session(self, path: Any, *args: str, **options: Any):
        """A session that is stopped afterwards; yields its start document."""
        started = self.start(path, *args, **options)
        try:
            yield started
        finally:
            self.ok("stop", "--session", started["session"])

    @property
    def daemon(self) -> int | None:
        """The daemon's process id, from what the daemon itself says."""
        return self.ok("broker", "status")["pid"]

    def containers(self) -> list[str]:
        """Ids of the containers, in any state, that carry this folder's label."""
        label = f"label={LABEL_HOME}={home_digest(self.path)}"
        return docker("ps", "-aq", "--no-trunc", "--filter", label, host=self.witness).split()

    def close(self) -> None:
        """End the daemon and prove that nothing is left."""
        self("broker", "stop")
        left = self.path / "run"
        eventually(lambda: not self.containers(), "containers are left")
        assert connect(self.path) is None, "somebody still listens"
        assert not lock_is_held(left / "broker.lock"), "a daemon is left"
        assert not list(self.path.glob("sessions/*/stage")), "a staged input is left"
        log = left / "broker.log"
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()[-4000:]


def lock_is_held(path: Path) -> bool:
    """Tell whether a process holds the lock; a folder that was never used has none."""
    if not path.exists():
        return False
    with path.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def eventually(condition: Any, what: str, *, within: float = LEFT_S) -> None:
    """Wait until ``condition()`` holds; used for what another process does in its own time."""
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def docker(*args: str, host: str | None = None) -> str:
    """Run the engine's own client as an independent witness."""
    where = () if host is None else (f"--host={host}",)
    done = subprocess.run(["docker", *where, *args], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Live:
    """A session and the commands on it."""

    def __init__(self, home: Home, started: dict[str, Any]) -> None:
        self.home = home
        self.started = started
        self.id = str(started["session"])

    def __call__(self, command: str, *args: str, **options: Any) -> Result:
        return self.home(command, "--session", self.id, *args, **options)

    def exec(self, code: str, *args: str, **options: Any) -> dict[str, Any]:
        return self.home.exec(code, "--session", self.id, *args, **options)

    def ok(self, command: str, *args: str, **options: Any) -> dict[str, Any]:
        return self.home.ok(command, "--session", self.id, *args, **options)

    def final(self) -> bytes:
        result = self("final")
        assert result.code == 0, result
        return result.out
