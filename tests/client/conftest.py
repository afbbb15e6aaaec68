"""The real Claude Code client, driven offline: its own home, its own folder, and a Messages API that plays the assistant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlm_sandbox.demo import loggen
from tests.support.cli import PROGRAM
from tests.support.messages_api import Api

ROOT = Path(__file__).resolve().parents[2]
CLIENT_S = 120.0
INSTALL_S = 280.0


@pytest.fixture(scope="session")
def program():
    """The client's program, installed into the user's cache at its first use."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so neither is the Claude Code client")
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "client.sh")], capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    if done.returncode != 0 and any(word in done.stderr for word in ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "E404")):
        pytest.skip(f"npm cannot get the Claude Code client: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Run:
    """What came of a run of the client."""

    api: Api
    events: list[dict[str, Any]]
    code: int
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        return next(event for event in self.events if event["type"] == "result")

    @property
    def init(self) -> dict[str, Any]:
        return next(event for event in self.events if event.get("subtype") == "init")

    @property
    def results(self) -> list[dict[str, Any]]:
        return self.api.conversation.results()


class Client:
    """The client in a home and a working folder of its own. ``HOME`` of the command line is the same."""

    def __init__(self, program: str, folder: Path, state: Path) -> None:
        self.program = program
        self.home = folder / "home"
        self.work = folder / "work"
        for made in (self.home, self.work, folder / "tmp"):
            made.mkdir()
        self.api = Api()
        self.env = {
            "PATH": f"{Path(PROGRAM).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "RLM_SANDBOX_HOME": str(state),
            "ANTHROPIC_BASE_URL": self.api.url,
            "ANTHROPIC_API_KEY": "not-a-real-key",
            "CLAUDE_CODE_TMPDIR": str(folder / "tmp"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "IS_SANDBOX": "1",
        }

    def rlm(self, *args: str) -> str:
        """Run a command of ours in the client's home."""
        done = subprocess.run(
            [PROGRAM, *args], env=self.env, cwd=self.work, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    def __call__(self, *flags: str, prompt: str = "Summarize every error pattern in app.log", **env: str) -> Run:
        """Let the client answer a prompt with the turns of ``api``."""
        done = subprocess.run(
            [self.program, "-p", prompt, "--output-format", "stream-json", "--verbose", *flags],
            env={**self.env, **env},
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
            check=False,
        )
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert self.api.defects == []
        return Run(self.api, events, done.returncode, done.stderr)


@pytest.fixture
def client(program, tmp_path_factory, fresh):
    made = Client(program, tmp_path_factory.mktemp("client"), fresh.path)
    yield made
    made.api.close()


@pytest.fixture(scope="session")
def planted_log(tmp_path_factory):
    """A log of 2 MB in which trouble was planted."""
    path = tmp_path_factory.mktemp("planted") / "app.log"
    loggen.generate(path, size=2_000_000)
    path.chmod(0o644)
    return path
