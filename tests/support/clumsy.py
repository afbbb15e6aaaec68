"""A caller whose world keeps dying: sends its cells one after the other and does, after each mishap, what the hints say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cli import Home, docker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

VICTIMS = ("kernel", "agent", "container", "daemon", "cli")


class Caller:
    """Runs ``cells`` to their end in one session."""

    def __init__(self, home: Home, session: str, start_args: list[str]) -> None:
        self.home = home
        self.session = session
        self.start_args = start_args
        self.mishaps: list[str] = []
        self.killed_at: float | None = None
        self.struck = False
        """The victim died while there was still something to do."""
        self._command: subprocess.Popen | None = None
        self._sent_at = threading.Event()
        self._done = False

    def run(self, cells: list[str], victim: str | None = None, moment: Callable[[], None] = lambda: None) -> bytes:
        """Return the final answer; ``victim`` dies once, when ``moment``, called when the first cell was sent, returns."""
        started = self.home("start", "--session", self.session, *self.start_args)
        assert started.code == 0, started
        killer = None
        if victim is not None:
            killer = threading.Thread(target=self._kill, args=(victim, moment))
            killer.start()
        for cell in cells:
            self._one(cell)
        self._done = True
        if killer is not None:
            killer.join()
        final = self.home("final", "--session", self.session)
        assert final.code == 0, (final, self.mishaps)
        return final.out

    def _one(self, code: str) -> None:
        """Send a cell until one of its number has ended well."""
        for _ in range(6):
            before = self._last_cell()
            done = self._exec(code)
            if done is None:
                done = self._recover()
            if done is not None and done["cell"] > before and done["status"] == "ok":
                return
            self.mishaps.append(json.dumps(done)[:300])
        raise AssertionError(self.mishaps)

    def _last_cell(self) -> int:
        for _ in range(6):
            status = self.home("status", "--session", self.session)
            if status.code == 0:
                return status.doc["cell"]
            self._recover()
        raise AssertionError(self.mishaps)

    def _exec(self, code: str):
        self._command = self.home.spawn("exec", "--session", self.session, "-c", code, "--wait", "60")
        self._sent_at.set()
        out, err = self._command.communicate(timeout=90)
        if self._command.returncode == 0:
            return json.loads(out)
        self.mishaps.append(f"exec {self._command.returncode}: {err.decode()[-200:]}")
        return None

    def _recover(self):
        """As a person would: wait; if the session is gone, resume it, and wait again."""
        done = self.home("wait", "--session", self.session, "--wait", "60")
        if done.code == 0:
            return done.doc
        self.mishaps.append(f"wait {done.code}: {done.err[-200:]}")
        if done.code == 2:
            return None
        again = self.home("resume", "--session", self.session)
        self.mishaps.append(f"resume {again.code}: {again.err[-200:]}")
        done = self.home("wait", "--session", self.session, "--wait", "60")
        return done.doc if done.code == 0 else None

    def _kill(self, victim: str, moment: Callable[[], None]) -> None:
        self._sent_at.wait(30)
        moment()
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, AssertionError, IndexError, TypeError):
            if victim == "cli":
                self._command.kill()
            elif victim == "daemon":
                pid = self.home.daemon
                self.killed_at = time.monotonic()
                os.kill(pid, signal.SIGKILL)
            elif victim == "container":
                docker("kill", self.home.containers()[0])
            else:
                agent = int(docker("inspect", "-f", "{{.State.Pid}}", self.home.containers()[0]))
                os.kill(agent if victim == "agent" else _child_of(agent), signal.SIGKILL)
            self.struck = not self._done


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
