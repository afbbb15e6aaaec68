"""An engine over ssh as a local socket: the user's own ``ssh`` forwards it, with the user's keys, config and known hosts.

One connection carries all streams, so a session over ssh costs no new handshake. The process ends with its owner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import weakref
from pathlib import Path

from rlm_sandbox.container.failures import one_line
from rlm_sandbox.errors import EngineError

REMOTE_SOCKET = "/var/run/docker.sock"

CONNECT_TIMEOUT = 20.0
"""Seconds for ssh to log in: a far host through a jump host takes a few."""


class Tunnel:
    """A forwarded socket: ``host`` is its address. Raises :class:`EngineError` with ssh's own last words."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.hostname.startswith("-"):
            raise EngineError(f"{url} names no host", hint="as in ssh://user@host")
        self._folder = tempfile.mkdtemp(prefix="rlm-ssh-")
        socket = Path(self._folder, "docker.sock")
        target = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
        port = ["-p", str(parts.port)] if parts.port else []
        remote = parts.path if parts.path not in {"", "/"} else REMOTE_SOCKET
        command = ["ssh", "-nNT", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", *port]
        command += ["-L", f"{socket}:{remote}", "--", target]
        with (Path(self._folder) / "words").open("w+b") as words:
            try:
                self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words)  # noqa: S603 - the user's ssh
            except FileNotFoundError as exc:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise EngineError("there is no ssh program on this machine", hint="install OpenSSH's client") from exc
            self._end = weakref.finalize(self, _end, self._process, self._folder, os.getpid())
            self._wait(socket)
        self.host = f"unix://{socket}"

    def _wait(self, socket: Path) -> None:
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while not socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = one_line((Path(self._folder) / "words").read_text(errors="replace")) or "no answer"
                self.close()
                raise EngineError(f"ssh cannot reach the engine: {words}", hint="try the same host with ssh by hand")
            time.sleep(0.02)

    def close(self) -> None:
        """End the forwarding. Idempotent."""
        self._end()


def _end(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    shutil.rmtree(folder, ignore_errors=True)
