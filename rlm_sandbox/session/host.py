"""All sessions of one process: how they start, how they are found, how they end.

Starting goes from the cheap to the dear, and whatever fails undoes what came before it: settings and policy, the input, the engine and the
image, the account, the container, the guest's own report, and only then the first untrusted byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.owners import is_alive
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Limits, SessionSpec
from rlm_sandbox.container import gc
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.engine import Engine, Tls
from rlm_sandbox.container.image import ensure_image
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.container.selfcheck import remarks, verify
from rlm_sandbox.errors import (
    DeadlineError,
    InternalError,
    InterruptedByUser,
    NoSuchSession,
    PolicyError,
    RLMError,
    UsageError,
)
from rlm_sandbox.models import FilePreview, LanguageSize, Started
from rlm_sandbox.sanitize import one_line, visible
from rlm_sandbox.session import fingerprint
from rlm_sandbox.session.channel import Channel
from rlm_sandbox.session.convert import micro, usd
from rlm_sandbox.session.guest_settings import LIFETIME_MS, go_payload, hello
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.live import LiveSession
from rlm_sandbox.session.opening import resume_request, start_record
from rlm_sandbox.session.past import CRASHES, Past
from rlm_sandbox.session.provider_choice import choose
from rlm_sandbox.session.resume import Plan, earlier_life
from rlm_sandbox.session.store import Store, check_name, new_name
from rlm_sandbox.settings import private_home
from rlm_sandbox.settings.model import (
    DEFAULT_RUNTIME,
    HostPolicy,
    Settings,
    check,
    load,
    load_policy,
    load_prices,
    within,
)
from rlm_sandbox.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rlm_sandbox.broker.core import Account
    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.session.replay import Rehearsal

log = logging.getLogger(__name__)

JANITOR_S = 1.0
"""How often idle and time limits are looked at: they are stated in seconds."""


def _silent(text: str) -> None:
    """Nobody watches."""


_KEPT_LIMITS = ("budget_limit", "token_limit", "token_warning", "cost_limit")
"""Caps that a reopened session takes over from its first start unless the caller names new ones."""

PATH_MAX = 4096
"""Characters of a path in a document: what the kernel allows in bytes."""

OVERDUE_S = 60.0
"""How long after a cell's timeout, and the grace of the interrupt, the guest may stay silent: it keeps the clock of its cells itself, so one
that does not is frozen or broken."""


@dataclass(frozen=True)
class StartRequest:
    """What a caller wants started. ``flags`` are settings by name, ``environment`` the caller's variables (keys included)."""

    input: str
    session: str | None = None
    glob: str | None = None
    exclude: str | None = None
    mode: str = "auto"
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    engine: Mapping[str, str] | None = None
    """The caller's ``DOCKER_*`` variables; None takes the engine of this process."""
    question: str | None = None
    """What the run is to answer, for the record."""
    fresh: bool = False
    """A reopened session begins without its variables."""
    buy: bool = False
    """What a reopened session asks beyond its record is bought instead of ending the restoring."""
    before: int | None = None
    """This cell of the record and all after it are left out."""
    rehearsal: Rehearsal | None = None
    """A replay: no account, answers from the record only."""


class Host:
    """Sessions, broker and engine of one process. Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, home: Path, broker: Broker, policy: HostPolicy, engine_host: str | None) -> None:
        self.home = home
        self.broker = broker
        self.policy = policy
        self.sessions: dict[str, LiveSession] = {}
        self._starting: set[str] = set()
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
        settings = load(request.flags, request.environment, self.home)
        session = check_name(request.session) if request.session else new_name()
        former = Store(settings.session_dir or self.home / "sessions", session).load_meta()
        settings = _models_as_before(settings, request.environment, former)
        check(settings, self.policy, bind=request.mode == "bind")
        provider, credentials = choose(settings, request.environment)
        check(settings.model_copy(update={"provider": provider}), self.policy)
        if session in self.sessions or session in self._starting:
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
                return await self._start(session, request, settings, provider, credentials, progress, undo)
        finally:
            self._starting.discard(session)

    async def _start(
        self,
        session: str,
        request: StartRequest,
        settings: Settings,
        provider: str,
        credentials: Any,
        progress: Callable[[str], None],
        undo: contextlib.AsyncExitStack,
    ) -> Started:
        store = Store(settings.session_dir or self.home / "sessions", session)
        store.claim()
        undo.callback(store.release)
        meta = store.load_meta()
        settings = within(_as_before(settings, meta), self.policy)
        past, troubles = (None, []) if meta is None else await asyncio.to_thread(earlier_life, store)
        admitted = await self._admit(request, settings, store, progress, undo)
        if request.rehearsal is not None:
            admitted = request.rehearsal.dress(admitted)
        if meta is not None and meta.get("input") != admitted.display:
            raise UsageError(
                f"session {session} was started on {visible(str(meta.get('input')))}",
                hint="reopen it with the same --input, or choose another --session name",
            )
        engine = await self.engine(request.engine)
        image = await ensure_image(engine, settings.image, progress=lambda text: progress(text))  # noqa: PLW0108 - the parameter has a name there
        model = settings.sub_model or create(provider, credentials).default_model()
        if request.rehearsal is not None:
            account = cast("Account", request.rehearsal.account())
        else:
            account = await self.broker.open_session(_spec(session, provider, model, credentials, settings))
        undo.push_async_callback(account.close)
        profile = _profile(settings)
        container = await launch(engine, image, profile, admitted, labels=self._labels(session, settings))
        undo.push_async_callback(container.close)
        channel = Channel(container)
        report = await channel.greet(hello(session, settings))
        verify(report, profile, admitted)
        admitted.warnings += remarks(report, profile)
        go = go_payload(session, settings, admitted, self.policy, None if past is None else past.start)
        if request.rehearsal is not None:
            go = request.rehearsal.go(go)
        channel.send(m.Go(go))
        store.save_meta(
            {
                "session": session,
                "input": admitted.display,
                "provider": provider,
                "model": model,
                "limits": {name: getattr(settings, name) for name in _KEPT_LIMITS},
                "created_at": (meta or {}).get("created_at") or datetime.now(UTC).isoformat(timespec="seconds"),
                "request": resume_request(request, settings, provider, model, without=_KEPT_LIMITS),
            }
        )
        journal = Journal(store.folder)
        undo.callback(journal.close)
        live = LiveSession(
            session=session,
            channel=channel,
            account=account,
            admitted=admitted,
            store=store,
            journal=journal,
            settings=settings,
            policy=self.policy,
            provider=provider,
            model=model,
            runtime=settings.runtime or DEFAULT_RUNTIME,
        )
        version = await asyncio.to_thread(lambda: engine.info().version)
        journal.append(
            "start",
            **start_record(
                session=session,
                request=request,
                admitted=admitted,
                image=image,
                engine=version,
                profile=profile,
                report=report,
                settings=settings,
                provider=provider,
                model=model,
                go=go,
                reopened=meta is not None,
            ),
        )
        live.image_id = image.id
        undo.push_async_callback(live.close, InternalError("the start was given up"))
        live.begin()
        live.chronicle.watch_input(fingerprint.Watch(admitted, live.chronicle.input))
        if request.rehearsal is None:
            await live.chronicle.open(_plan(request, past), progress, reopened=meta is not None)
        self.sessions[session] = live
        live_task = asyncio.create_task(self._forget_when_over(live, request))
        live.keep(live_task)
        undo.pop_all()
        return await document(live, meta is not None, troubles + live.chronicle.outcome.told)

    async def _admit(
        self,
        request: StartRequest,
        settings: Settings,
        store: Store,
        progress: Callable[[str], None],
        undo: contextlib.AsyncExitStack,
    ) -> Admitted:
        abandoned = threading.Event()

        def counted(files: int, size: int) -> None:
            if abandoned.is_set():
                raise InterruptedByUser("the start was given up")
            progress(f"staging: {files} files, {size >> 20} MiB")

        undo.callback(store.drop_stage)
        admitting = asyncio.create_task(
            asyncio.to_thread(
                admit,
                request.input,
                glob=request.glob,
                exclude=request.exclude,
                mode=request.mode,
                stage_dir=store.stage,
                max_file_bytes=settings.max_per_file_bytes,
                prefix_len=settings.context_prefix_len,
                progress=counted,
            )
        )
        try:
            admitted = await asyncio.shield(admitting)
        except asyncio.CancelledError:
            abandoned.set()  # the thread still works on it: let it end before its folder goes
            await asyncio.wait([admitting])
            if admitting.exception() is None:
                admitting.result().close()
            raise
        undo.callback(admitted.close)
        return admitted

    def _labels(self, session: str, settings: Settings) -> dict[str, str]:
        lifetime = settings.time_limit or LIFETIME_MS / 1000
        owner = self.broker.ledger.owner
        return gc.labels(session=session, owner=owner, home=self.home, deadline=time.time() + lifetime)

    async def _forget_when_over(self, live: LiveSession, request: StartRequest) -> None:
        await live.over.wait()
        if self.sessions.get(live.session) is live:
            del self.sessions[live.session]
            if live.ended is not None and live.ended.kind in CRASHES:
                self._crashed[live.session] = (live, replace(request, session=live.session, fresh=False, before=None))

    async def attend(self, session: str | None, progress: Callable[[str], None] = _silent) -> LiveSession:
        """As :meth:`find`, but bring a session back whose container died under it."""
        name = session
        if name is None and not self.sessions and len(self._crashed) == 1:
            name = next(iter(self._crashed))
        if name is not None and name in self._crashed and name not in self.sessions:
            live, request = self._crashed.pop(name)
            await live.close(live.ended or InternalError("it ended"))
            await self.start(request, progress)
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
        root = self.home / "sessions"
        dropped = []
        for path in root.glob("*/stage"):
            with contextlib.suppress(UsageError):  # live, in this process or another, or no session's folder
                store = Store(root, path.parent.name)
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


def _profile(settings: Settings) -> RunProfile:
    return RunProfile.default().with_limits(
        memory=settings.memory,
        cpus=settings.cpus,
        runtime=settings.runtime,
        pids=settings.pids,
        tmpfs=settings.tmpfs,
        tmpfs_inodes=settings.tmpfs_files,
        shm=min(settings.shm, settings.memory) if "shm" not in settings.model_fields_set else settings.shm,
        nofile=settings.open_files,
    )


def _connect(variables: Mapping[str, str]) -> Engine:
    certs = variables.get("DOCKER_CERT_PATH") if variables.get("DOCKER_TLS_VERIFY") else None
    tls = None if certs is None else Tls(f"{certs}/ca.pem", f"{certs}/cert.pem", f"{certs}/key.pem")
    return Engine.connect(variables.get("DOCKER_HOST"), context=variables.get("DOCKER_CONTEXT"), tls=tls)


def _as_before(settings: Settings, meta: Mapping[str, Any] | None) -> Settings:
    """Give a reopened session the caps of its first start where the caller named none."""
    before = (meta or {}).get("limits")
    if not isinstance(before, dict):
        return settings
    kept = {name: before[name] for name in _KEPT_LIMITS if name in before and name not in settings.model_fields_set}
    return settings.model_copy(update=kept)


def _models_as_before(settings: Settings, environment: Mapping[str, str], meta: Mapping[str, Any] | None) -> Settings:
    """Give a reopened session its provider and models where the caller named none.

    Else a shell without the key would go on with another provider without a word, and what was answered would be bought
    again from the default model.
    """
    before = meta or {}
    if not settings.provider and not environment.get("LLM_PROVIDER") and isinstance(before.get("provider"), str):
        settings = settings.model_copy(update={"provider": before["provider"]})
    if settings.provider != before.get("provider"):
        return settings
    flags = (before.get("request") or {}).get("flags") or {}
    kept: dict[str, Any] = {}
    if settings.sub_model is None and isinstance(before.get("model"), str):
        kept["sub_model"] = before["model"]
    if not settings.allow_model and isinstance(flags.get("allow_model"), list):
        kept["allow_model"] = tuple(flags["allow_model"])
    return settings.model_copy(update=kept)


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


def _plan(request: StartRequest, past: Past | None) -> Plan:
    if past is None or request.fresh:
        return Plan(past or Past(), before=0, fresh=True)
    return Plan(past, live=request.buy, before=request.before)


async def document(live: LiveSession, reopened: bool, told: list[str]) -> Started:
    """Return what ``start`` prints about a session; ``told`` are warnings besides those about its input."""
    admitted, settings = live.admitted, live.settings
    budget = await live.account.budget()
    return Started(
        session=live.session,
        input=visible(admitted.display),
        is_directory=admitted.kind == "directory",
        context_total_bytes=admitted.total_bytes,
        context_total_chars=admitted.total_chars,
        context_prefix=visible(admitted.prefix),
        line_count=admitted.line_count,
        file_count=admitted.file_count,
        files_preview=[
            FilePreview(path=one_line(entry["path"], PATH_MAX), chars=entry["chars"], bytes=entry["bytes"])
            for entry in admitted.files_preview
        ],
        languages=[LanguageSize(**each) for each in admitted.languages],
        budget_limit=budget.limit,
        token_limit=budget.token_limit,
        token_warning=budget.token_warning,
        cost_limit=None if budget.cost_limit_micro is None else usd(budget.cost_limit_micro),
        time_limit=settings.time_limit,
        session_dir=str(live.store.folder),
        image=settings.image,
        runtime=live.runtime,
        provider=live.provider,
        model=live.model,
        reopened=reopened,
        warnings=[visible(text) for text in (*admitted.warnings, *told)],
    )


def _spec(session: str, provider: str, model: str, credentials: Any, settings: Settings) -> SessionSpec:
    limits = Limits(
        calls=settings.budget_limit,
        tokens=settings.token_limit,
        token_warning=settings.token_warning,
        cost_micro=None if settings.cost_limit is None else micro(settings.cost_limit),
        deadline=None if settings.time_limit is None else time.time() + settings.time_limit,
    )
    return SessionSpec(
        session=session,
        provider=provider,
        model=model,
        credentials=credentials,
        allow_models=frozenset(settings.allow_model),
        limits=limits,
        concurrency=settings.concurrency,
        max_tokens=settings.sub_max_tokens,
        call_deadline_s=settings.call_deadline,
        cache_scope=settings.cache_scope,
    )


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
