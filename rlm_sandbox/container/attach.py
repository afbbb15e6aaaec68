"""One running container as its host sees it: bytes out, bytes in, and an end that leaves nothing behind.

The guest is hostile, so every buffer here is bounded: what it sends waits in the socket until somebody reads (the guest then blocks, not
the host), what it does not read ends the session at a limit or a deadline, and its stderr is kept as a tail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import docker.errors

from rlm_sandbox.container import demux
from rlm_sandbox.container.failures import FOREIGN, boundary, is_gone
from rlm_sandbox.errors import DeadlineError, EngineError, ProtocolError

if TYPE_CHECKING:
    from rlm_sandbox.container.engine import Engine
    from rlm_sandbox.container.transport import Stream

logger = logging.getLogger(__name__)

READ_SIZE = 256 * 1024

WRITE_MAX = 64 * 1024 * 1024
"""Bytes queued for the guest. Four of the largest answers (16 MiB); a guest that reads drains them in about a second."""

DRAIN_LOW = 1024 * 1024
"""``drain`` returns below this: one frame of work stays queued while the next is made."""

DRAIN_DEADLINE = 30.0
"""Seconds a guest may go without reading. Its agent reads at once; only a stopped one takes this long."""

STDERR_TAIL = 16 * 1024
"""Bytes of stderr kept: a traceback of the agent. Cells have no access to it."""

KILL_DEADLINE = 20.0
"""Seconds for the engine to make a killed container disappear; auto-removal takes about one."""

_EVENT_LINE_MAX = 256 * 1024


@dataclass(frozen=True)
class ExitFacts:
    """How a container ended. ``code`` is None while it runs or when the engine did not say; 137 is SIGKILL."""

    code: int | None
    oom: bool


class Container:
    """A started container. One reader and one writer at a time; ``close`` may be called from anywhere, often."""

    def __init__(self, engine: Engine, ident: str, name: str, stream: Stream, events: Stream) -> None:
        self.id = ident
        self.name = name
        self._engine = engine
        self._stream = stream
        self._events = events
        self._demuxer = demux.Demuxer()
        self._pending: list[bytes] = []
        self._stderr = bytearray()
        self._eof = False
        self._code: int | None = None
        self._oom = False
        self._died = asyncio.Event()
        self._gone = asyncio.Event()
        """Nobody will read any more. The engine does not say so on the stream: it just stops taking bytes."""
        self._closing: asyncio.Task[None] | None = None
        stream.writer.transport.set_write_buffer_limits(high=DRAIN_LOW, low=DRAIN_LOW // 2)
        self._watcher = asyncio.create_task(self._watch(), name=f"events-{name}")

    async def read(self) -> bytes:
        """Return what the guest wrote to stdout, as it comes; ``b""`` at its end."""
        while not self._pending:
            if self._eof:
                return b""
            try:
                data = await self._stream.reader.read(READ_SIZE)
            except OSError:
                data = b""
            if not data:
                self._eof = True
                self._gone.set()
                return b""
            for stream, piece in self._demuxer.feed(data):
                if stream == demux.STDOUT:
                    self._pending.append(piece)
                else:
                    self._keep_stderr(piece)
        joined = b"".join(self._pending)
        self._pending.clear()
        return joined

    def _keep_stderr(self, piece: bytes) -> None:
        self._stderr += piece[-STDERR_TAIL:]
        del self._stderr[:-STDERR_TAIL]

    @property
    def stderr_tail(self) -> str:
        """The last of the agent's stderr, with everything but printable characters and newlines escaped."""
        text = self._stderr.decode("utf-8", "replace")
        return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def write(self, data: bytes) -> None:
        """Queue bytes for the guest's stdin. Raises :class:`ProtocolError` when it has stopped reading."""
        transport = self._stream.writer.transport
        if self._gone.is_set() or transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(data) > WRITE_MAX:
            raise ProtocolError("the guest does not read what it is sent", hint="its session is ended")
        self._stream.writer.write(data)

    async def drain(self, deadline: float = DRAIN_DEADLINE) -> None:
        """Wait until little is queued. A guest that is gone ends the wait; one that does not read raises.

        Raises:
            DeadlineError: ``deadline`` seconds passed.
        """
        if self._gone.is_set() or self._stream.writer.transport.get_write_buffer_size() <= DRAIN_LOW:
            return
        waits = [asyncio.create_task(self._flush()), asyncio.create_task(self._gone.wait())]
        try:
            done, _ = await asyncio.wait(waits, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if not done:
            raise DeadlineError(f"the guest read nothing for {deadline:g} s")

    async def _flush(self) -> None:
        try:
            await self._stream.writer.drain()
        except OSError:
            logger.debug("container %s: stdin is gone", self.name)

    async def exit_facts(self, wait: float = 5.0) -> ExitFacts:
        """Return how the container ended, waiting up to ``wait`` seconds for the engine to say so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._died.wait()
        return ExitFacts(code=self._code, oom=self._oom)

    async def _watch(self) -> None:
        """Follow the engine's events about this container: auto-removal leaves nothing to inspect afterwards."""
        buffer = b""
        with contextlib.suppress(OSError):
            while chunk := await self._events.reader.read(READ_SIZE):
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self._note_event(line)
                if len(buffer) > _EVENT_LINE_MAX:
                    break

    def _note_event(self, line: bytes) -> None:
        """Note an event; lines that are not JSON objects are the framing of HTTP chunks."""
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        action = event.get("Action")
        if action == "oom":
            self._oom = True
        elif action == "die":
            code = str(((event.get("Actor") or {}).get("Attributes") or {}).get("exitCode", ""))
            self._code = int(code) if code.isdecimal() else None
            self._died.set()
            self._gone.set()

    async def kill(self) -> None:
        """Kill every process in the container. One that is gone already is fine."""
        await asyncio.to_thread(kill, self._engine, self.id)

    async def close(self) -> None:
        """Kill, remove and forget the container. Idempotent; concurrent calls wait for the same end.

        Raises:
            EngineError: the engine did not remove it; ``gc`` will find it by its labels.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close-{self.name}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._gone.set()
        self._stream.abort()
        try:
            await asyncio.to_thread(remove, self._engine, self.id)
        finally:
            self._events.abort()
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)


def kill(engine: Engine, ident: str) -> None:
    """Send SIGKILL, blocking; a container that is not running is what was wanted."""
    with boundary("kill the container"):
        try:
            engine.api.kill(ident)
        except docker.errors.APIError as exc:
            if not is_gone(exc):
                raise


def remove(engine: Engine, ident: str) -> None:
    """Kill and remove, blocking until the engine does not know the container any more."""
    deadline = time.monotonic() + KILL_DEADLINE
    pause = 0.02
    while True:
        try:
            engine.api.remove_container(ident, force=True, v=True)
        except docker.errors.NotFound:
            return
        except FOREIGN as exc:
            if not is_gone(exc) and time.monotonic() > deadline:
                with boundary("remove the container"):
                    raise
        if time.monotonic() > deadline:
            raise EngineError(f"the engine did not remove the container {ident[:12]}", hint="run: rlm-sandbox gc")
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
