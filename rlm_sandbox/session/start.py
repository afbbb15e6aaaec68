"""One session's start, from a request to a session that serves.

It goes from the cheap to the dear, and whatever fails undoes what came before it: the name, the input, the engine and the image, the account,
the container, the guest's own report, and only then the first untrusted byte.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Limits, SessionSpec
from rlm_sandbox.container import gc
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.image import ensure_image
from rlm_sandbox.container.input_sample import note_unproven, sample_of
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile, own_uid
from rlm_sandbox.container.selfcheck import has_inodes, remarks, verify
from rlm_sandbox.errors import InternalError, InterruptedByUser, UsageError
from rlm_sandbox.sanitize import visible
from rlm_sandbox.session import fingerprint, places
from rlm_sandbox.session.channel import Channel
from rlm_sandbox.session.convert import micro
from rlm_sandbox.session.guest_settings import LIFETIME_MS, go_payload, hello
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.live import LiveSession
from rlm_sandbox.session.opening import resume_request, start_record
from rlm_sandbox.session.past import Past
from rlm_sandbox.session.resume import Plan, earlier_life
from rlm_sandbox.session.store import Store
from rlm_sandbox.settings.model import DEFAULT_RUNTIME, within
from rlm_sandbox.wire import messages as m

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from rlm_sandbox.broker.core import Account, Broker
    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.container.engine import Engine
    from rlm_sandbox.container.image import ImageInfo
    from rlm_sandbox.session.replay import Rehearsal
    from rlm_sandbox.settings.model import HostPolicy, Settings

_KEPT_LIMITS = ("budget_limit", "token_limit", "token_warning", "cost_limit")
"""Caps that a reopened session takes over from its first start unless the caller names new ones."""


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


@dataclass
class Start:
    """A start on its way; :meth:`run` once. Every step leaves on ``undo`` what takes it back."""

    session: str
    request: StartRequest
    settings: Settings
    provider: str
    credentials: Any = field(repr=False)
    progress: Callable[[str], None]
    undo: contextlib.AsyncExitStack
    home: Path
    broker: Broker
    policy: HostPolicy
    engine: Callable[[Mapping[str, str] | None], Awaitable[Engine]]
    reopened: bool = False

    async def run(self) -> tuple[LiveSession, list[str]]:
        """Return the session, which serves, and what is to be told about its earlier life."""
        store = Store(self.settings.session_dir or places.usual(self.home), self.session)
        store.claim()
        self.undo.callback(store.release)
        await asyncio.to_thread(places.note, self.home, store.folder.parent)
        meta = store.load_meta()
        self.reopened = meta is not None
        self.settings = within(caps_as_before(self.settings, meta), self.policy)
        past, troubles = (None, []) if meta is None else await asyncio.to_thread(earlier_life, store)
        admitted = await self._admitted(store, meta)
        engine = await self.engine(self.request.engine)
        image = await ensure_image(engine, self.settings.image, progress=lambda text: self.progress(text))  # noqa: PLW0108 - the parameter has a name there
        model = self.settings.sub_model or create(self.provider, self.credentials).default_model()
        account = await self._account(model)
        troubles = [*troubles, *await self._deadline_kept(account)]
        profile = _profile(self.settings)
        if not (await asyncio.to_thread(engine.info)).remapped:  # where users are mapped there are 65,536
            profile = replace(profile, uid=own_uid(str(self.home), self.session))
        channel, report = await self._launched(engine, image, profile, admitted)
        go = self._go(admitted, past)
        channel.send(m.Go(go))
        store.save_meta(self._meta(admitted, model, meta))
        journal = Journal(store.folder)
        self.undo.callback(journal.close)
        live = LiveSession(
            session=self.session,
            channel=channel,
            account=account,
            admitted=admitted,
            store=store,
            journal=journal,
            settings=self.settings,
            policy=self.policy,
            provider=self.provider,
            model=model,
            runtime=self.settings.runtime or DEFAULT_RUNTIME,
        )
        journal.append(
            "start",
            **start_record(
                session=self.session,
                request=self.request,
                admitted=admitted,
                image=image,
                engine=await asyncio.to_thread(lambda: engine.info().version),
                profile=profile,
                report=report,
                settings=self.settings,
                provider=self.provider,
                model=model,
                go=go,
                reopened=self.reopened,
            ),
        )
        live.image_id = image.id
        self.undo.push_async_callback(live.close, InternalError("the start was given up"))
        live.begin()
        live.chronicle.watch_input(fingerprint.Watch(admitted, live.chronicle.input))
        if self.request.rehearsal is None:
            await live.chronicle.open(_plan(self.request, past), self.progress, reopened=self.reopened)
        return live, troubles + live.chronicle.outcome.told

    async def _admitted(self, store: Store, meta: Mapping[str, Any] | None) -> Admitted:
        admitted = await self._admit(store)
        if self.request.rehearsal is not None:
            admitted = self.request.rehearsal.dress(admitted)
        if meta is not None and meta.get("input") != admitted.display:
            raise UsageError(
                f"session {self.session} was started on {visible(str(meta.get('input')))}",
                hint="reopen it with the same --input, or choose another --session name",
            )
        return admitted

    async def _admit(self, store: Store) -> Admitted:
        abandoned = threading.Event()
        request, settings = self.request, self.settings

        def told(text: str) -> None:
            if abandoned.is_set():
                raise InterruptedByUser("the start was given up")
            self.progress(text)

        self.undo.callback(store.drop_stage)
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
                progress=told,
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
        self.undo.callback(admitted.close)
        return admitted

    async def _account(self, model: str) -> Account:
        if self.request.rehearsal is not None:
            account = cast("Account", self.request.rehearsal.account())
        else:
            spec = _spec(self.session, self.provider, model, self.credentials, self.settings)
            account = await self.broker.open_session(spec)
        self.undo.push_async_callback(account.close)
        return account

    async def _deadline_kept(self, account: Account) -> list[str]:
        """Say so when a reopened session goes on under its old deadline: a limit named again would be a limit raised."""
        left = (await account.budget()).time_left_s if self.reopened else None
        named = self.settings.time_limit
        if left is None or named is None or abs(left - named) < 1:
            return []
        return [f"the time limit of the first start goes on: nothing is bought after another {max(0.0, left):.0f} s"]

    async def _launched(
        self, engine: Engine, image: ImageInfo, profile: RunProfile, admitted: Admitted
    ) -> tuple[Channel, m.Report]:
        """Start the container and go on only if it reports every control that was asked for."""
        lifetime = self.settings.time_limit or LIFETIME_MS / 1000
        owner, deadline = self.broker.ledger.owner, time.time() + lifetime
        labels = gc.labels(session=self.session, owner=owner, home=self.home, deadline=deadline)
        local = engine.info().local
        sample = None if has_inodes(profile, local=local) else await asyncio.to_thread(sample_of, admitted, local=local)
        container = await launch(engine, image, profile, admitted, labels=labels)
        self.undo.push_async_callback(container.close)
        channel = Channel(container)
        report = await channel.greet(hello(self.session, self.settings, sample))
        verify(report, profile, admitted, local=local, sample=sample)
        admitted.warnings += remarks(report, profile)
        if sample is not None and not local:
            admitted.warnings += note_unproven(admitted, sample)
        return channel, report

    def _go(self, admitted: Admitted, past: Past | None) -> bytes:
        go = go_payload(self.session, self.settings, admitted, self.policy, None if past is None else past.start)
        return go if self.request.rehearsal is None else self.request.rehearsal.go(go)

    def _meta(self, admitted: Admitted, model: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "session": self.session,
            "input": admitted.display,
            "provider": self.provider,
            "model": model,
            "limits": {name: getattr(self.settings, name) for name in _KEPT_LIMITS},
            "created_at": (before or {}).get("created_at") or datetime.now(UTC).isoformat(timespec="seconds"),
            "request": resume_request(self.request, self.settings, self.provider, model, without=_KEPT_LIMITS),
        }


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


def caps_as_before(settings: Settings, meta: Mapping[str, Any] | None) -> Settings:
    """Give a reopened session the caps of its first start where the caller named none."""
    before = (meta or {}).get("limits")
    if not isinstance(before, dict):
        return settings
    kept = {name: before[name] for name in _KEPT_LIMITS if name in before and name not in settings.model_fields_set}
    return settings.model_copy(update=kept)


def models_as_before(settings: Settings, environment: Mapping[str, str], meta: Mapping[str, Any] | None) -> Settings:
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


def _plan(request: StartRequest, past: Past | None) -> Plan:
    if past is None or request.fresh:
        return Plan(past or Past(), before=0, fresh=True)
    return Plan(past, live=request.buy, before=request.before)


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
