"""All sessions of one process: how they are started, found and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.owners import is_alive
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers import create
from rlm_sandbox.container import gc
from rlm_sandbox.container.engine import Engine, Tls
from rlm_sandbox.errors import (
    DeadlineError,
    InternalError,
    NoSuchSession,
    PolicyError,
    PrerequisiteError,
    RLMError,
    UsageError,
)
from rlm_sandbox.sanitize import visible
from rlm_sandbox.session import documents, places
from rlm_sandbox.session.convert import micro
from rlm_sandbox.session.past import CRASHES
from rlm_sandbox.session.provider_choice import choose
from rlm_sandbox.session.start import Start, models_as_before
from rlm_sandbox.session.store import META, Store, check_name, new_name
from rlm_sandbox.settings import private_home
from rlm_sandbox.settings.model import (
    HostPolicy,
    check,
    load,
    load_policy,
    load_prices,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rlm_sandbox.models import Started
    from rlm_sandbox.session.live import LiveSession
    from rlm_sandbox.session.start import StartRequest

log = logging.getLogger(__name__)

JANITOR_S = 1.0
"""How often idle and time limits are looked at: they are stated in seconds."""


SETTLE_S = 0.05
"""Between two looks at a start that another command is at: a tenth of what it takes."""


def _silent(text: str) -> None:
    """Nobody watches."""


OVERDUE_S = 60.0
"""How long after a cell's timeout, and the grace of the interrupt, the guest may stay silent: it keeps the clock of its cells itself, so one
that does not is frozen or broken."""


class Host:
    """Sessions, broker and engine of one process. Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, home: Path, broker: Broker, policy: HostPolicy, engine_host: str | None) -> None:
        self.home = home
        self.broker = broker
        self.policy = policy
        self.sessions: dict[str, LiveSession] = {}
        self._starting: set[str] = set()
        self.erasing = asyncio.Lock()
        """Held while a session is being forgotten."""
        self._own_engine = {"DOCKER_HOST": engine_host} if engine_host else {}
        self._engines: dict[frozenset[tuple[str, str]], Engine] = {}
        self._janitor: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._crashed: dict[str, tuple[LiveSession, StartRequest]] = {}

    @classmethod
    async def open(cls, home: Path, *, engine_host: str | None = None) -> Host:
        """Open the state folder and its ledger; the engine is connected when a session needs it."""
        private_home(home)
        policy = load_policy(home)
        broker = await Broker.open(
            home,
            policy=_broker_policy(policy),
            provider_factory=create,
            prices=PriceBook(load_prices(home)),
            host_concurrency=policy.max_concurrency,
        )
        host = cls(home, broker, policy, engine_host)
        host._janitor = asyncio.create_task(host._watch())
        return host

    async def engine(self, variables: Mapping[str, str] | None = None) -> Engine:
        """Return the engine that the variables name, connecting or re-connecting as needed."""
        named = self._own_engine if variables is None else variables
        key = frozenset(named.items())
        engine = self._engines.get(key)
        if engine is None or not await asyncio.to_thread(engine.alive):
            engine = self._engines[key] = await asyncio.to_thread(_connect, named)
        return engine

    async def start(self, request: StartRequest, progress: Callable[[str], None] = _silent) -> Started:
        """Start (or reopen) a session and return its document."""
        await asyncio.to_thread(private_home, self.home)  # it may have been opened to others since this process came up
        await asyncio.to_thread(private_home, self.home)  # it may have been opened to others since this process came up
        settings = load(request.flags, request.environment, self.home)
        session = check_name(request.session) if request.session else new_name()
        if request.session and settings.session_dir is None:  # it goes on where it lies
            settings = settings.model_copy(update={"session_dir": await asyncio.to_thread(self._place_of, session)})
        former = Store(settings.session_dir or places.usual(self.home), session).load_meta()
        settings = models_as_before(settings, request.environment, former)
        check(settings, self.policy, bind=request.mode == "bind")
        provider, credentials = choose(settings, request.environment)
        check(settings.model_copy(update={"provider": provider}), self.policy)
        if session in self._starting:
            raise UsageError(
                f"session {session} is being started by another command",
                hint=f"wait a moment, then rlm-sandbox exec --session {session}",
            )
        if session in self.sessions:
            raise UsageError(
                f"session {session} is already live",
                hint=f"use it (rlm-sandbox exec --session {session}), or stop it first",
            )
        if len(self.sessions) + len(self._starting) >= self.policy.max_sessions:
            raise PolicyError(
                f"{self.policy.max_sessions} sessions are live, the host's limit", hint="stop one: rlm-sandbox list"
            )
        self._starting.add(session)
        try:
            async with contextlib.AsyncExitStack() as undo:
                starting = Start(
                    session=session,
                    request=request,
                    settings=settings,
                    provider=provider,
                    credentials=credentials,
                    progress=progress,
                    undo=undo,
                    home=self.home,
                    broker=self.broker,
                    policy=self.policy,
                    engine=self.engine,
                )
                live, told = await starting.run()
                self.sessions[session] = live
                live.keep(asyncio.create_task(self._forget_when_over(live, request)))
                undo.pop_all()
                return await documents.started(live, reopened=starting.reopened, told=told)
        finally:
            self._starting.discard(session)

    def _place_of(self, session: str) -> Path | None:
        folder = places.folder_of(self.home, session, META)
        return None if folder is None or folder.parent == places.usual(self.home) else folder.parent

    async def _forget_when_over(self, live: LiveSession, request: StartRequest) -> None:
        await live.over.wait()
        if self.sessions.get(live.session) is live:
            del self.sessions[live.session]
            if live.ended is not None and live.ended.kind in CRASHES:
                self._crashed[live.session] = (live, replace(request, session=live.session, fresh=False, before=None))

    def busy(self, session: str) -> bool:
        """Tell whether a session is live or about to be."""
        return session in self.sessions or session in self._starting

    async def settled(self, session: str) -> None:
        """Return when no command is starting the session; one that was killed has its start undone, which takes a moment."""
        while session in self._starting:  # noqa: ASYNC110 - rare, and an event for each start would have to be kept
            await asyncio.sleep(SETTLE_S)

    async def attend(self, session: str | None, progress: Callable[[str], None] = _silent) -> LiveSession:
        """As :meth:`find`, but bring a session back whose container died under it."""
        name = session
        if name is None and not self.sessions and len(self._crashed) == 1:
            name = next(iter(self._crashed))
        if name is not None and name in self._crashed and name not in self.sessions:
            live, request = self._crashed.pop(name)
            await live.close(live.ended or InternalError("it ended"))
            await self.start(request, progress)
        if name is not None:
            await self.settled(name)
        return self.find(name)

    def find(self, session: str | None) -> LiveSession:
        """Return a live session by name, or the only one. Raises :class:`NoSuchSession`."""
        if session is not None:
            live = self.sessions.get(session)
            if live is None:
                known = session if len(session) <= 80 else session[:80] + "..."  # noqa: PLR2004 - for a message
                raise NoSuchSession(
                    f"no live session {visible(known)!r}",
                    hint="see rlm-sandbox list, or go on with rlm-sandbox resume --session ID, or start --session ID --input PATH (all is kept)",
                )
            return live
        if len(self.sessions) == 1:
            return next(iter(self.sessions.values()))
        if not self.sessions:
            raise NoSuchSession("no session is live", hint="start one: rlm-sandbox start --input PATH")
        names = ", ".join(sorted(self.sessions))
        raise NoSuchSession(f"{len(self.sessions)} sessions are live: {names}", hint="name one with --session")

    async def stop(self, session: str) -> bool:
        """End a session and free what it holds; False when it was not live."""
        live = self.sessions.pop(session, None)
        self._crashed.pop(session, None)
        if live is None:
            return False
        await live.close(NoSuchSession("it was stopped", hint="start it again with rlm-sandbox start --session"))
        return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(JANITOR_S)
            for live in list(self.sessions.values()):
                why = _over(live)
                if why is not None:
                    self.sessions.pop(live.session, None)
                    ending = asyncio.create_task(self._end(live, why))
                    self._endings.add(ending)
                    ending.add_done_callback(self._endings.discard)

    @staticmethod
    async def _end(live: LiveSession, why: str) -> None:
        try:
            await live.close(DeadlineError(why, hint="start it again with rlm-sandbox start --session"))
        except (RLMError, OSError):
            log.exception("session %s did not end cleanly", live.session)

    async def collect(self, variables: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
        """Remove containers whose owner is gone and staged inputs of no live session; return both."""
        engine = await self.engine(variables)
        owners = self.home / "owners"
        gone = await asyncio.to_thread(gc.collect, engine, self.home, owner_alive=lambda owner: is_alive(owners, owner))
        return [found.session for found in gone], await asyncio.to_thread(self.drop_stages)

    def drop_stages(self) -> list[str]:
        """Remove the input copies that killed processes left; return their sessions. Blocks."""
        dropped = []
        for path in (path for root in places.roots(self.home) for path in root.glob("*/stage")):
            with contextlib.suppress(
                UsageError, PrerequisiteError
            ):  # live, in this process or another, or no session's folder
                store = Store(path.parent.parent, path.parent.name)
                store.claim()
                store.drop_stage()
                store.release()
                dropped.append(path.parent.name)
        return sorted(dropped)

    async def close(self) -> None:
        """End every session, then the broker. A session that does not end cleanly does not keep the others."""
        if self._janitor is not None:
            self._janitor.cancel()
        ends = [self.stop(name) for name in list(self.sessions)]
        outcomes = await asyncio.gather(*ends, *self._endings, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                log.error("a session did not end cleanly: %s", outcome)
        await self.broker.aclose()


def _connect(variables: Mapping[str, str]) -> Engine:
    certs = variables.get("DOCKER_CERT_PATH") if variables.get("DOCKER_TLS_VERIFY") else None
    tls = None if certs is None else Tls(f"{certs}/ca.pem", f"{certs}/cert.pem", f"{certs}/key.pem")
    return Engine.connect(variables.get("DOCKER_HOST"), context=variables.get("DOCKER_CONTEXT"), tls=tls)


def _over(live: LiveSession) -> str | None:
    """Say why a session's time has come, or return None."""
    now, limit, run = time.monotonic(), live.settings.time_limit, live.running
    if limit is not None and now - live.opened > limit:
        return f"its time limit of {limit:g} s is over"
    if run is None and now - live.touched > live.settings.idle_timeout:
        return f"it was idle for {live.settings.idle_timeout:g} s"
    if run is not None and now - run.started > run.timeout_s + OVERDUE_S:
        return "its container did not answer after the cell's timeout"
    return None


def _broker_policy(policy: HostPolicy) -> Policy:
    return Policy(
        models=None if policy.models is None else frozenset(policy.models),
        max_prompt_bytes=policy.max_prompt_bytes,
        max_tokens=policy.max_tokens,
        max_calls_per_second=policy.calls_per_second,
        daily_cost_micro=None if policy.daily_cost is None else micro(policy.daily_cost),
        secrets=policy.secrets,
        cache_bytes=policy.cache_max,
        cache_age_s=policy.cache_days * 86400,
    )
