"""The broker daemon: one asyncio loop, one control socket, all sessions of a user.

Only processes of the same user are served. A client that goes away loses nothing: its cell goes on. The daemon ends when told to, on
SIGTERM, or after it has had neither a session nor a client for a while; whatever way it ends, the containers end with it, because their
only channel is a stream it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from rlm_sandbox.daemon import ops
from rlm_sandbox.daemon.paths import address, run_folder, socket_path
from rlm_sandbox.daemon.protocol import CONTROL_VERSION, event, pieces
from rlm_sandbox.errors import InternalError, PrerequisiteError, ProtocolError, RLMError
from rlm_sandbox.session.host import Host
from rlm_sandbox.settings import private_home
from rlm_sandbox.wire.frames import FrameDecoder, FrameError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

IDLE_S = 600.0
"""How long a daemon without sessions and clients stays: starting one costs half a second, keeping one 60 MiB."""

LAST_WORDS_S = 2.0
"""How long an ending daemon waits for its clients to take their answers."""

_PEERCRED = struct.Struct("3i")


class AlreadyServedError(PrerequisiteError):
    """Another daemon has the state folder."""


class Server:
    """Serves one state folder."""

    def __init__(self, home: Path, host: Host, *, idle_s: float) -> None:
        self._home = home
        self._host = host
        self._idle_s = idle_s
        self._clients = 0
        self._nobody = asyncio.Event()
        self._quiet_since = time.monotonic()
        self._started = time.monotonic()
        self._ending = asyncio.Event()
        self._modules = len(sys.modules)

    async def run(self, ready: Any = None) -> None:
        """Serve until it is time to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        listener = _listen(socket_path(self._home))
        server = await asyncio.start_unix_server(self._client, sock=listener)
        if ready is not None:
            ready()
        idle = asyncio.create_task(self._watch_idle())
        await self._ending.wait()
        idle.cancel()
        server.close()
        socket_path(self._home).unlink(missing_ok=True)
        await self._host.close()
        if self._clients:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):  # whoever waits is told how its command ended
                    await self._nobody.wait()

    def _spare_modules(self) -> None:
        """Keep the collector off what was imported since: to look through a provider's SDK takes it a tenth of a second, of every session."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            gc.freeze()

    async def _watch_idle(self) -> None:
        while not self._ending.is_set():
            await asyncio.sleep(min(1.0, self._idle_s / 2))
            self._spare_modules()
            if self._clients or self._host.sessions:
                self._quiet_since = time.monotonic()
            elif time.monotonic() - self._quiet_since > self._idle_s:
                self._ending.set()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        self._nobody.clear()
        try:
            if _same_user(writer):
                await self._serve(reader, writer)
        except (ConnectionError, FrameError, asyncio.IncompleteReadError):
            pass  # the client went away or spoke nonsense: its cell, if any, goes on
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._clients -= 1
            self._quiet_since = time.monotonic()
            if not self._clients:
                self._nobody.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder()
        header, raw = await _frame(reader, decoder)
        body = b""
        if header.get("body"):
            _, body = await _frame(reader, decoder)

        def progress(document: dict[str, Any]) -> None:
            if not writer.is_closing() and writer.transport.get_write_buffer_size() < 1 << 20:
                writer.write(event("progress", document))

        work = asyncio.create_task(self._answer(header, raw, body, progress))
        if header.get("op") == "start":
            await self._unless_gone(work, reader)
        answer = await work
        writer.write(answer)
        await writer.drain()

    @staticmethod
    async def _unless_gone(work: asyncio.Task[bytes], reader: asyncio.StreamReader) -> None:
        """Give a start up when nobody is left to learn the session's name."""
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not work.done():
                work.cancel()
                await asyncio.wait({work})
                raise ConnectionResetError
        finally:
            gone.cancel()

    async def _answer(self, header: dict[str, Any], raw: bytes, body: bytes, progress: Any) -> bytes:
        ctx = ops.Context(self._host, progress, self._started, self._ending.set)
        op = str(header.get("op"))
        try:
            result = await ops.perform(ctx, op, _arguments(header, raw), body)
        except RLMError as exc:
            return event("error", exc.to_json())
        except Exception as exc:
            # The top of the daemon: other sessions live here, so a defect in one request is logged and told, never fatal.
            log.exception("operation %s failed by a defect", op)
            defect = InternalError(
                f"{type(exc).__name__} in the broker", hint=f"see {self._home / 'run' / 'broker.log'}"
            )
            return event("error", defect.to_json())
        if isinstance(result, bytes):
            return pieces("data", result) + event("result", {})
        return event("result", result)


def _arguments(header: dict[str, Any], raw: bytes) -> dict[str, Any]:
    if header.get("version") != CONTROL_VERSION:
        raise ProtocolError(
            "client and broker daemon are of different versions", hint="rlm-sandbox broker stop, then again"
        )
    try:
        args = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("a request's arguments are not JSON", hint="use the rlm-sandbox command") from exc
    if not isinstance(args, dict):
        raise ProtocolError("a request's arguments are not an object", hint="use the rlm-sandbox command")
    return args


async def _frame(reader: asyncio.StreamReader, decoder: FrameDecoder) -> tuple[dict[str, Any], bytes]:
    while (frame := decoder.next_frame()) is None:
        data = await reader.read(1 << 16)
        if not data:
            raise asyncio.IncompleteReadError(b"", None)
        decoder.feed(data)
    return frame


def _same_user(writer: asyncio.StreamWriter) -> bool:
    """Check the peer's uid: the folder is private, but a socket may have been passed on."""
    peer: socket.socket = writer.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # not Linux: the folder's 0700 stands alone
    _, uid, _ = _PEERCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return bool(uid == os.getuid())


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)  # we hold the lock, so nobody listens there
        with address(path) as name:
            listener.bind(name)
    except OSError as exc:
        raise PrerequisiteError(
            f"the control socket {path} cannot be made: {exc.strerror}",
            hint="remove what is in its place, or set RLM_SANDBOX_HOME to another folder",
        ) from exc
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def acquire(home: Path) -> int:
    """Take the state folder for this process; raises :class:`AlreadyServedError` when another daemon has it."""
    private_home(home)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(run_folder(home) / "broker.lock", flags, 0o600)
    except OSError as exc:
        raise PrerequisiteError(
            f"the state folder {home} cannot be used: {exc.strerror} (run/broker.lock)",
            hint="look at what is in its run folder, or set RLM_SANDBOX_HOME to another",
        ) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AlreadyServedError(
            f"a broker daemon already serves {home}", hint="use it, or end it with rlm-sandbox broker stop"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


async def serve(home: Path, *, engine_host: str | None, idle_s: float = IDLE_S) -> None:
    """Open the state folder and serve it until told to end."""
    host = await Host.open(home, engine_host=engine_host)
    await asyncio.to_thread(host.drop_stages)
    await Server(home, host, idle_s=idle_s).run()
