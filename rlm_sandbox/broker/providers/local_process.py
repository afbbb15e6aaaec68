"""Server processes of the ``local`` provider: one for each weights file, shared by the sessions of this process.

A lease holds a server up; the last release stops it. Should this process die in whatever way, the server sees its stdin end and goes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rlm_sandbox.errors import PrerequisiteError

if TYPE_CHECKING:
    from asyncio.subprocess import Process

SERVER = Path(__file__).with_name("local_server.py")

START_S = 120.0
"""Seconds from the start to the first answer. Half a second for the small model; large weights on a slow disk need minutes."""

SLOTS_PER_CORE = 4
"""Sequences decoded at once. Short prompts gain from a wide batch, since each step reads all weights once for every sequence; memory grows
with each slot's context, and beyond a few a core the sums themselves are what takes the time."""

SLOTS_MAX = 16

SLOT_TOKENS = 4096
"""Context of one slot, prompt and answer together: 90 MB for the small model, which was trained up to 8192."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a server is started with."""

    gguf: Path
    alias: str
    slots: int
    threads: int
    slot_tokens: int

    @classmethod
    def fitted(cls, gguf: Path, alias: str, *, slot_tokens: int = SLOT_TOKENS) -> Shape:
        """Return the shape that suits this machine's cores."""
        cores = len(os.sched_getaffinity(0))
        return cls(gguf, alias, min(SLOTS_MAX, SLOTS_PER_CORE * cores), cores, slot_tokens)


@dataclass
class Server:
    """A running server."""

    process: Process
    url: str
    key: str
    leases: int = 0
    _log: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """False once the process has ended."""
        return self.process.returncode is None

    async def stop(self) -> None:
        """End the process and wait until it is gone."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        if self._log is not None:
            self._log.cancel()


@dataclass
class _Pool:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    servers: dict[Shape, Server] = field(default_factory=dict)


_POOLS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()
"""By event loop: a process object is of use on its own loop only."""


async def lease(shape: Shape) -> Server:
    """Return a running server of that shape, started if need be. Raises PrerequisiteError."""
    pool = _POOLS.setdefault(asyncio.get_running_loop(), _Pool())
    async with pool.lock:
        server = pool.servers.get(shape)
        if server is None or not server.alive:
            server = pool.servers[shape] = await _start(shape)
        server.leases += 1
        return server


async def release(server: Server) -> None:
    """Give a lease back; the last one stops the server."""
    pool = _POOLS.setdefault(asyncio.get_running_loop(), _Pool())
    async with pool.lock:
        server.leases -= 1
        if server.leases > 0:
            return
        for shape in [shape for shape, known in pool.servers.items() if known is server]:
            del pool.servers[shape]
        await server.stop()


async def _start(shape: Shape) -> Server:
    key = secrets.token_urlsafe(32)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(SERVER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            "OMP_WAIT_POLICY": "passive"
        },  # idle threads must not spin on cores that cells need; and no secret of ours
    )
    assert process.stdin is not None  # noqa: S101 - as asked for above
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    said: deque[bytes] = deque(maxlen=20)
    drain = asyncio.create_task(_drain(process.stderr, said))
    config: dict[str, Any] = {
        "gguf": str(shape.gguf),
        "key": key,
        "alias": shape.alias,
        "slots": shape.slots,
        "threads": shape.threads,
        "slot_tokens": shape.slot_tokens,
    }
    try:
        process.stdin.write(json.dumps(config).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(START_S):
            ready = json.loads(await process.stdout.readline() or b"{}")
    except (TimeoutError, ConnectionError, ValueError):
        ready = {}
    except asyncio.CancelledError:
        process.kill()
        raise
    if "port" not in ready:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await drain
        why = (
            ready.get("error") or " ".join(b" ".join(said).decode(errors="replace").split())[-200:] or "no reason given"
        )
        raise PrerequisiteError(f"the local model cannot be started: {why}", hint="check the weights and free memory")
    return Server(process, f"http://127.0.0.1:{int(ready['port'])}/v1", key, _log=drain)


async def _drain(stream: asyncio.StreamReader, into: deque[bytes]) -> None:
    """Keep the pipe empty, and the last words for an error."""
    while chunk := await stream.read(4096):
        into.append(chunk)
