"""The Python API: a session as an object, synchronous or asynchronous, through the daemon or in this process.

Both classes speak the daemon's operations and return its documents as :mod:`rlm_sandbox.models`, so a script behaves like the command line.
In-process sessions share one :class:`~rlm_sandbox.session.host.Host` for each state folder and event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from rlm_sandbox import models, settings
from rlm_sandbox.daemon.request import start_arguments
from rlm_sandbox.errors import NoSuchSession, RLMError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine
    from pathlib import Path
    from types import TracebackType

    from rlm_sandbox.session.host import Host

_T = TypeVar("_T")


class _Backend(Protocol):
    async def call(self, op: str, arguments: dict[str, Any], body: bytes = b"") -> Any: ...

    async def close(self) -> None: ...


class _Daemon:
    """Through the control socket."""

    async def call(self, op: str, arguments: dict[str, Any], body: bytes = b"") -> Any:
        from rlm_sandbox.daemon import client  # noqa: PLC0415 - not needed in-process

        pieces: list[bytes] = []
        document = await asyncio.to_thread(client.call, op, arguments, body, data=pieces.append)
        return b"".join(pieces) if op == "final" else document

    async def close(self) -> None:
        """The daemon lives on."""


@dataclass
class _SharedHost:
    """One host, opened by whoever comes first, ended by whoever leaves last."""

    opening: asyncio.Task[Host]
    users: int = 0


_hosts: dict[tuple[asyncio.AbstractEventLoop, Path], _SharedHost] = {}


class _InProcess:
    """On a host of this process, one for each event loop and state folder; the last session that leaves ends it."""

    def __init__(self) -> None:
        self._key = (asyncio.get_running_loop(), settings.home())
        shared = _hosts.get(self._key)
        if shared is None:
            shared = _hosts[self._key] = _SharedHost(asyncio.create_task(self._open()))
        shared.users += 1
        self._shared: _SharedHost | None = shared

    async def _open(self) -> Host:
        from rlm_sandbox.session.host import Host  # noqa: PLC0415 - heavy

        return await Host.open(self._key[1], engine_host=settings.engine_host())

    async def call(self, op: str, arguments: dict[str, Any], body: bytes = b"") -> Any:
        from rlm_sandbox.daemon import ops  # noqa: PLC0415 - heavy

        if self._shared is None:
            if op == "stop":
                return {}
            raise NoSuchSession(f"session {arguments.get('session')} was stopped", hint="start a new one")
        host = await asyncio.shield(self._shared.opening)
        ctx = ops.Context(host, lambda _: None, time.monotonic(), lambda: None)
        return await ops.perform(ctx, op, arguments, body)

    async def close(self) -> None:
        """Leave; harmless when repeated."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        shared.users -= 1
        if shared.users == 0:
            del _hosts[self._key]
            with contextlib.suppress(RLMError):  # one that could not be opened was reported to whoever asked for it
                await (await shared.opening).close()


class AsyncSession:
    """A session for asyncio code. Make it with :meth:`start`, end it with :meth:`stop` or ``async with``."""

    def __init__(self, backend: _Backend, started: models.Started) -> None:
        self._backend = backend
        self.started = started

    @classmethod
    async def start(cls, input: str | os.PathLike[str], *, in_process: bool = False, **options: Any) -> Self:  # noqa: A002 - the public name
        """Start a session; options as for :class:`Session`."""
        backend: _Backend = _InProcess() if in_process else _Daemon()
        try:
            document = await backend.call("start", start_arguments(input, **options))
        except BaseException:
            await backend.close()
            raise
        return cls(backend, models.Started.model_validate(document))

    @property
    def id(self) -> str:
        """The session's name."""
        return self.started.session

    async def _ask(self, op: str, body: bytes = b"", **arguments: Any) -> Any:
        return await self._backend.call(op, {"session": self.id, **arguments}, body)

    async def exec(
        self,
        code: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the cell's, enforced in the guest
        wait: float | None = None,
        stdout_max: int | None = None,
    ) -> models.Executed:
        """Run a cell. ``timeout`` bounds the cell, ``wait`` this call (then the status is ``running``); seconds."""
        try:
            body = code.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise UsageError(f"the code is no text: {exc.reason}", hint="write the character as an escape") from exc
        return models.Executed.model_validate(
            await self._ask("exec", body, timeout=timeout, wait=wait, stdout_max=stdout_max)
        )

    async def wait(self, wait: float | None = None) -> models.Executed:
        """Wait for the running cell, or return the last one's result."""
        return models.Executed.model_validate(await self._ask("wait", wait=wait))

    async def interrupt(self, wait: float | None = None) -> models.Executed:
        """Interrupt the running cell and return its result."""
        return models.Executed.model_validate(await self._ask("interrupt", wait=wait))

    async def final(self) -> bytes:
        """Return the final answer's bytes."""
        answer: bytes = await self._ask("final")
        return answer

    async def budget(self, **changes: Any) -> models.BudgetState:
        """Return the account, after changes named as the command's options (``set=200``, ``set_cost_limit=1.5``)."""
        return models.BudgetState.model_validate(await self._ask("budget", **changes))

    async def status(self) -> models.SessionStatus:
        """Return what ``status`` shows."""
        return models.SessionStatus.model_validate(await self._ask("status"))

    async def stop(self) -> None:
        """End the session; harmless when it has ended."""
        await self._ask("stop")
        await self._backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class _Loop:
    """One event loop in a daemon thread, for all synchronous sessions of the process."""

    _loop: asyncio.AbstractEventLoop | None = None
    _lock = threading.Lock()

    @classmethod
    def run(cls, work: Coroutine[Any, Any, _T]) -> _T:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="rlm-sandbox", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, cls._loop).result()


class Session:
    """A session for ordinary code.

    For example::

        with Session("/var/log/big.log", budget=50) as session:
            session.exec("hits = grep('ERROR'); FINAL(len(hits))")
            print(session.final().decode())

    Options are those of ``rlm-sandbox start`` with dashes as underscores: ``glob``, ``exclude``, ``session``, ``snapshot``, ``bind``, ``provider``,
    ``model``, ``allow_model``, ``budget``, ``token_limit``, ``cost_limit``, ``time_limit``, ``concurrency``, ``image``, ``runtime``, ``memory``,
    ``cpus``, ``cell_timeout``, ``idle_timeout``. Raises the errors of :mod:`rlm_sandbox.errors`.
    """

    def __init__(self, input: str | os.PathLike[str], *, in_process: bool = False, **options: Any) -> None:  # noqa: A002 - the public name
        self._session = _Loop.run(AsyncSession.start(input, in_process=in_process, **options))
        self.started = self._session.started

    @property
    def id(self) -> str:
        """The session's name."""
        return self._session.id

    def exec(
        self, code: str, *, timeout: float | None = None, wait: float | None = None, stdout_max: int | None = None
    ) -> models.Executed:
        """Run a cell; see :meth:`AsyncSession.exec`."""
        return _Loop.run(self._session.exec(code, timeout=timeout, wait=wait, stdout_max=stdout_max))

    def wait(self, wait: float | None = None) -> models.Executed:
        """Wait for the running cell, or return the last one's result."""
        return _Loop.run(self._session.wait(wait))

    def interrupt(self, wait: float | None = None) -> models.Executed:
        """Interrupt the running cell and return its result."""
        return _Loop.run(self._session.interrupt(wait))

    def final(self) -> bytes:
        """Return the final answer's bytes."""
        return _Loop.run(self._session.final())

    def budget(self, **changes: Any) -> models.BudgetState:
        """Return the account, after changes; see :meth:`AsyncSession.budget`."""
        return _Loop.run(self._session.budget(**changes))

    def status(self) -> models.SessionStatus:
        """Return what ``status`` shows."""
        return _Loop.run(self._session.status())

    def stop(self) -> None:
        """End the session; harmless when it has ended."""
        _Loop.run(self._session.stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
