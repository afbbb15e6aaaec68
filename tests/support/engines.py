"""A second engine on this machine, with options of its own, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from rlm_sandbox.container.engine import Engine
from rlm_sandbox.errors import EngineError
from tests.support.cli import eventually

needs_dockerd = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts a dockerd of its own, as root"
)

START_S = 60.0
"""How long an engine may take to answer on a busy machine; on an idle one it takes two seconds."""


@contextlib.contextmanager
def engine(*options: str, mounts: str = ":"):
    """Run an engine; yields the path of its socket.

    It has namespaces of its own for the network, where it would else remove the other engine's bridge, and for mounts; ``mounts`` is a shell
    command that changes what it sees.
    """
    interfaces = sorted(Path("/sys/class/net").iterdir())
    with tempfile.TemporaryDirectory(prefix="engine-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # users in a user namespace must come through
        socket, log = folder / "docker.sock", folder / "log"
        command = [
            "unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", f'{mounts} && exec "$@"', "sh",
            "dockerd", *options, f"--host=unix://{socket}", f"--data-root={folder}/data",
            f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false",
        ]  # fmt: skip
        with log.open("wb") as output:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            eventually(lambda: answers(socket) or daemon.poll() is not None, "the engine did not start", within=START_S)
            assert daemon.poll() is None, f"the engine ended: {log.read_text()[-500:]}"
            yield socket
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(START_S)
        assert sorted(Path("/sys/class/net").iterdir()) == interfaces, "the engine changed this machine's network"


def answers(socket: Path) -> bool:
    """Tell whether an engine answers there."""
    try:
        Engine.connect(f"unix://{socket}").close()
    except EngineError:
        return False
    return True
