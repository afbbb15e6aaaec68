"""The thin side of the control socket: find the daemon, start one when there is none, ask, pass events on.

Synchronous and light: this is on the path of every command.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time

from rlm_sandbox import settings
from rlm_sandbox.daemon.paths import address, run_folder, socket_name
from rlm_sandbox.daemon.protocol import EventReader, request
from rlm_sandbox.errors import NoSuchSession, PrerequisiteError, ProtocolError, UsageError, from_kind
from rlm_sandbox.wire.frames import PAYLOAD_MAX, FrameError

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from rlm_sandbox.errors import RLMError

START_S = 60.0
"""How long a fresh daemon may take to listen: half a second on an idle machine."""

_SANDBOX_HINT = (
    "this shell may not open Unix sockets. In Claude Code add to settings.json: "
    '{"sandbox": {"excludedCommands": ["rlm-sandbox *"]}} and call rlm-sandbox plainly: cells by -f FILE, no heredoc, redirect or variable before it'
)


def connect(home: str | Path) -> socket.socket | None:
    """Return a connection to the daemon of ``home``, or None when none listens."""
    try:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with address(socket_name(home)) as name:
                client.connect(name)
        except OSError:
            client.close()
            raise
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except NotADirectoryError as exc:
        raise PrerequisiteError(
            f"the state folder {home} is not a folder", hint="set RLM_SANDBOX_HOME to a folder of your own"
        ) from exc
    except PermissionError as exc:
        if exc.errno == errno.EPERM:
            raise PrerequisiteError("operation not permitted on the control socket", hint=_SANDBOX_HINT) from exc
        raise PrerequisiteError(
            f"the control socket of {home} belongs to another user", hint="set RLM_SANDBOX_HOME to a folder of your own"
        ) from exc
    except OSError as exc:
        raise PrerequisiteError(f"the control socket cannot be reached: {exc}", hint=_SANDBOX_HINT) from exc
    return client


def _spawn(home: Path) -> subprocess.Popen[bytes]:
    """Start a daemon in the background; its stdout carries the reason if it cannot serve."""
    import subprocess  # noqa: PLC0415 - only the command that starts the daemon pays for it

    settings.private_home(home)
    try:
        log = os.open(
            run_folder(home) / "broker.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,  # a FIFO would wait
            0o600,
        )
    except OSError as exc:
        raise PrerequisiteError(
            f"the state folder {home} cannot be used: {exc.strerror}",
            hint="set RLM_SANDBOX_HOME to a folder you may write",
        ) from exc
    daemon = subprocess.Popen(
        [sys.executable, "-m", "rlm_sandbox.daemon"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=settings.daemon_environment(),
        cwd="/",
        start_new_session=True,
    )
    os.close(log)
    return daemon


def ensure(home: Path) -> socket.socket:
    """Return a connection, starting a daemon when none listens. Raises :class:`PrerequisiteError` when it does not come up."""
    client = connect(home)
    if client is not None:
        return client
    daemon = _spawn(home)  # when several commands do this at once, the daemons settle by lock which one stays
    give_up = time.monotonic() + START_S
    pause = 0.005
    while time.monotonic() < give_up:
        time.sleep(pause)
        pause = min(0.1, pause * 1.03)  # still below 15 ms when an idle machine's daemon answers
        client = connect(home)
        if client is not None:
            return client
        if daemon.poll():  # 0 is one that found another at work: it will answer in a moment
            raise _why(daemon, home)
    raise PrerequisiteError("the broker daemon did not start", hint=f"see the end of {home}/run/broker.log")


def _why(daemon: subprocess.Popen[bytes], home: Path) -> RLMError:
    """Return what a daemon that ended said of it."""
    said, _ = daemon.communicate()
    try:
        told = json.loads(said)
        return from_kind(told["kind"], told["message"], told["hint"])
    except (ValueError, KeyError, TypeError):
        return PrerequisiteError(
            f"the broker daemon ended with status {daemon.returncode}", hint=f"see the end of {home}/run/broker.log"
        )


def call(
    op: str,
    arguments: dict[str, Any],
    body: bytes | None = None,
    *,
    spawn: bool = True,
    progress: Callable[[dict[str, Any]], None] | None = None,
    data: Callable[[bytes], None] | None = None,
) -> dict[str, Any]:
    """Ask the daemon and return its document. Raises the :class:`RLMError` that it answered with."""
    home = settings.home_folder()
    asked = _request(op, arguments, body)
    client = ensure(settings.home()) if spawn else connect(home)
    if client is None:
        raise _nobody(arguments.get("session"))
    with client:
        try:
            client.sendall(asked)
            return _receive(client, progress, data)
        except (FrameError, KeyError, json.JSONDecodeError) as exc:
            raise ProtocolError(
                f"what answers on the control socket of {home} is no broker daemon of this version",
                hint="rlm-sandbox broker stop, then again; or remove run/broker.sock there",
            ) from exc
        except (ConnectionError, BrokenPipeError) as exc:
            raise ProtocolError(
                "the broker daemon went away during the command", hint=f"see {home}/run/broker.log; rlm-sandbox list"
            ) from exc


def _request(op: str, arguments: dict[str, Any], body: bytes | None) -> bytes:
    try:
        return request(op, arguments, body)
    except FrameError as exc:
        raise UsageError(
            f"the request is larger than {PAYLOAD_MAX} bytes", hint="put data into the input, not into code or options"
        ) from exc
    except TypeError as exc:
        raise UsageError(f"an option cannot be sent: {exc}", hint="use text, numbers and paths") from exc


def _nobody(session: str | None) -> NoSuchSession:
    """No daemon runs, so no session is live; say how to go on with an old one."""
    if session is None:
        return NoSuchSession("no session is live", hint="start one: rlm-sandbox start --input PATH")
    return NoSuchSession(
        f"session {session} is not live (the broker daemon is not running)",
        hint=f"go on with rlm-sandbox resume --session {session}, or rlm-sandbox start --session {session} --input PATH: "
        "variables, budget and answers are kept",
    )


def await_end(timeout_s: float = 30.0) -> None:
    """Wait until the daemon that was told to end no longer holds its state folder."""
    import fcntl  # noqa: PLC0415 - rare

    lock = os.open(
        run_folder(settings.home()) / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    give_up = time.monotonic() + timeout_s
    try:
        while time.monotonic() < give_up:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
            else:
                return
    finally:
        os.close(lock)
    raise PrerequisiteError("the broker daemon did not end", hint=f"see {settings.home()}/run/broker.log")


def _receive(
    client: socket.socket, progress: Callable[[dict[str, Any]], None] | None, data: Callable[[bytes], None] | None
) -> dict[str, Any]:
    reader = EventReader()
    while chunk := client.recv(1 << 18):
        for kind, raw in reader.feed(chunk):
            if kind == "data":
                if data is not None:
                    data(raw)
                continue
            document: dict[str, Any] = json.loads(raw)
            if kind == "result":
                return document
            if kind == "error":
                raise from_kind(str(document["kind"]), str(document["message"]), str(document["hint"]))
            if progress is not None:
                progress(document)
    raise ConnectionResetError
