"""What the daemon can be asked: one function an operation, from checked arguments to a document.

The in-process Python API calls the same functions, so both ways behave alike.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm_sandbox import __version__
from rlm_sandbox.daemon import record_ops
from rlm_sandbox.daemon.paths import socket_path
from rlm_sandbox.errors import NoSuchSession, UsageError
from rlm_sandbox.models import FORMAT_VERSION, BrokerState, Collected, SessionList, Stopped
from rlm_sandbox.sanitize import one_line
from rlm_sandbox.session import documents, root
from rlm_sandbox.session.convert import budget_state, micro, usd
from rlm_sandbox.session.places import kept_final
from rlm_sandbox.session.start import StartRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from rlm_sandbox.models import Started
    from rlm_sandbox.session.cell import CellRun
    from rlm_sandbox.session.host import Host
    from rlm_sandbox.session.live import LiveSession


@dataclass
class Context:
    """What an operation works with. ``progress`` takes small JSON objects and must not block."""

    host: Host
    progress: Callable[[dict[str, Any]], None]
    started: float
    stop: Callable[[], None]


Document = "dict[str, Any] | BaseModel | bytes"
Operation = "Callable[[Context, dict[str, Any], bytes], Awaitable[Document]]"


async def start(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Start or reopen a session."""
    request = StartRequest(
        input=args["input"],
        session=args.get("session"),
        glob=args.get("glob"),
        exclude=args.get("exclude"),
        mode=args.get("mode", "auto"),
        flags=args.get("flags") or {},
        environment=args.get("environment") or {},
        engine=args.get("engine"),
        question=args.get("question"),
        fresh=bool(args.get("fresh")),
    )
    started = await ctx.host.start(request, lambda text: ctx.progress({"message": text}))
    others = [] if args.get("new") else _on_the_same_input(ctx, started)
    return started.model_copy(update={"warnings": [*started.warnings, *others]})


def _on_the_same_input(ctx: Context, started: Started) -> list[str]:
    """Name the sessions that whoever started this one may have meant: two at once are nobody's fault, but seldom what a model wants."""
    mine = ctx.host.sessions.get(started.session)
    if mine is None:
        return []
    return [
        f"session {other.session} is live on the same input, with {len(other.variables)} variables and its own budget; to go on with it: "
        f"rlm-sandbox stop --session {started.session}, then rlm-sandbox status --session {other.session} (start --new says nothing of this)"
        for other in ctx.host.sessions.values()
        if other is not mine and other.admitted.display == mine.admitted.display
    ]


def _stdout_max(live: LiveSession, args: dict[str, Any]) -> int | None:
    """Return how much output to show: what the command says, else what the session was told, else the form's default."""
    if args.get("stdout_max") is None and "stdout_max" not in live.settings.model_fields_set:
        return args.get("stdout_default")
    return args.get("stdout_max")


async def execute(ctx: Context, args: dict[str, Any], code: bytes) -> BaseModel:
    """Run a cell."""
    live = await ctx.host.attend(args.get("session"), lambda text: ctx.progress({"message": text}))
    stop = _watch(live, ctx.progress)
    try:
        return await live.execute(
            code, timeout_s=args.get("timeout"), wait_s=args.get("wait"), stdout_max=_stdout_max(live, args)
        )
    finally:
        stop()


PROGRESS_S = 0.1
"""Between two reports of a cell: what a person can follow. A batch of a thousand calls has two thousand things to tell."""


class _Paced:
    """Reports a cell's progress at most so often, and its latest state always."""

    def __init__(self, progress: Callable[[dict[str, Any]], None]) -> None:
        self._progress = progress
        self._waiting: CellRun | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, run: CellRun) -> None:
        self._waiting = run
        if self._timer is None:
            self._report()

    def close(self) -> None:
        """Report nothing more: the document comes next."""
        if self._timer is not None:
            self._timer.cancel()

    def _report(self) -> None:
        self._timer = None
        if self._waiting is not None:
            self._progress(_cell_progress(self._waiting))
            self._waiting = None
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_S, self._report)


def _watch(live: LiveSession, progress: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Report a session's cell until the returned function is called."""
    paced = _Paced(progress)
    unwatch = live.watch(paced)

    def stop() -> None:
        unwatch()
        paced.close()

    return stop


def _cell_progress(run: CellRun) -> dict[str, Any]:
    return {
        "cell": run.cell,
        "calls_done": run.calls_done,
        "calls_failed": run.calls_failed,
        "calls_planned": run.calls_planned,
        "tokens": run.tokens,
        "cost_usd": usd(run.cost_micro),
        "elapsed_ms": run.elapsed_ms,
        "timeout_s": run.timeout_s,
    }


async def wait(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Wait for the running cell."""
    live = await ctx.host.attend(args.get("session"), lambda text: ctx.progress({"message": text}))
    stop = _watch(live, ctx.progress)
    try:
        return await live.wait(args.get("wait"), _stdout_max(live, args))
    finally:
        stop()


async def interrupt(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Interrupt the running cell."""
    live = ctx.host.find(args.get("session"))
    return await live.interrupt(args.get("wait"), _stdout_max(live, args))


async def final(ctx: Context, args: dict[str, Any], _: bytes) -> bytes:
    """Return the answer's bytes, of a live session or one that ended."""
    name = args.get("session")
    if name is None or name in ctx.host.sessions:
        return await asyncio.to_thread(ctx.host.find(name).store.read_final)
    return await asyncio.to_thread(kept_final, ctx.host.home, name, args.get("root"))


async def budget(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Show the account, after changing its caps where asked."""
    live = ctx.host.find(args.get("session"))
    changes: dict[str, Any] = {}
    for argument, cap in (("set", "calls"), ("set_token_limit", "tokens"), ("set_token_warning", "token_warning")):
        if args.get(argument) is not None:
            changes[cap] = args[argument]
    if args.get("clear_token_limit"):
        changes["tokens"] = None
    if args.get("clear_token_warning"):
        changes["token_warning"] = None
    if args.get("set_cost_limit") is not None:
        changes["cost_micro"] = micro(args["set_cost_limit"])
    if changes:
        await live.set_limits(**changes)
    return budget_state(await live.account.budget())


async def budget_history(ctx: Context, args: dict[str, Any], _: bytes) -> dict[str, Any]:
    """List the calls of a session, newest first; also of one that ended."""
    session, number = await _account(ctx, args.get("session"))
    calls = await ctx.host.broker.calls(number, min(args.get("limit") or HISTORY_MAX, HISTORY_MAX))
    return {"format_version": FORMAT_VERSION, "session": session, "calls": calls}


async def budget_verify(ctx: Context, args: dict[str, Any], _: bytes) -> dict[str, Any]:
    """Derive every sum of a session's account anew from the ledger's events; also of one that ended."""
    session, number = await _account(ctx, args.get("session"))
    return {"format_version": FORMAT_VERSION, "session": session, **await ctx.host.broker.ledger.verify(number)}


HISTORY_MAX = 10_000
"""Calls in one document: some ten megabytes."""


async def _account(ctx: Context, name: str | None) -> tuple[str, int]:
    """Return a session's name and the number of its account: the ledger remembers sessions that ended."""
    ledger = ctx.host.broker.ledger
    if name is not None and name not in ctx.host.sessions and (number := await ledger.find(name)) is not None:
        return name, number
    session = ctx.host.find(name).session
    number = await ledger.find(session)
    if number is None:
        raise NoSuchSession(f"session {one_line(session, 128)} has no account", hint="a replay buys nothing")
    return session, number


async def converse(ctx: Context, args: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Ask a root model for a turn, on the session's account."""
    live = ctx.host.find(args.get("session"))
    model, most, step = args.get("model"), args.get("max_tokens"), args.get("step") or 0
    return await root.converse(live, body, model=model, max_tokens=most, step=step)


async def status(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Show one session."""
    return await documents.status(ctx.host.find(args.get("session")))


async def list_sessions(ctx: Context, _: dict[str, Any], __: bytes) -> BaseModel:
    """Show all live sessions."""
    return SessionList(sessions=[await documents.status(live) for live in list(ctx.host.sessions.values())])


async def stop(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """End one session, or all; ending one that is not there is no error."""
    if args.get("all"):
        names = sorted(ctx.host.sessions)
        outcomes = await asyncio.gather(*(ctx.host.stop(name) for name in names), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return Stopped(stopped=names, was_live=bool(names))
    name = args.get("session")
    if name is None:
        if not ctx.host.sessions:
            return Stopped(stopped=[], was_live=False)
        name = ctx.host.find(None).session
    return Stopped(stopped=one_line(name, 128), was_live=await ctx.host.stop(name))


async def collect(ctx: Context, args: dict[str, Any], _: bytes) -> BaseModel:
    """Remove containers and staged inputs that belong to nobody, and kept answers beyond the cache's bounds."""
    await ctx.host.broker.upkeep.sweep()
    containers, stages = await ctx.host.collect(args.get("engine"))
    gone = await record_ops.sweep(ctx.host, args.get("older_than"), args.get("max_size"))
    return Collected(containers=containers, stages=stages, forgotten=gone)


async def broker_status(ctx: Context, _: dict[str, Any], __: bytes) -> BaseModel:
    """Describe the daemon."""
    return BrokerState(
        running=True,
        pid=os.getpid(),
        version=__version__,
        socket=str(socket_path(ctx.host.home)),
        home=str(ctx.host.home),
        sessions=sorted(ctx.host.sessions),
        uptime_s=round(time.monotonic() - ctx.started, 3),
    )


async def broker_stop(ctx: Context, _: dict[str, Any], __: bytes) -> dict[str, Any]:
    """Ask the daemon to end: every session is stopped first."""
    ctx.stop()
    return {"stopped": True, "pid": os.getpid()}


OPERATIONS: dict[str, Any] = {
    "start": start,
    "exec": execute,
    "wait": wait,
    "interrupt": interrupt,
    "final": final,
    "converse": converse,
    "budget": budget,
    "budget_history": budget_history,
    "budget_verify": budget_verify,
    "status": status,
    "list": list_sessions,
    "stop": stop,
    "gc": collect,
    "broker_status": broker_status,
    "broker_stop": broker_stop,
    **record_ops.OPERATIONS,
}


_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("session", "input", "glob", "exclude", "mode", "root", "question", "target", "sign_key", "model"), (str,)
    ),
    **dict.fromkeys(("flags", "environment", "engine"), (dict,)),
    **dict.fromkeys(("timeout", "wait", "set_cost_limit", "older_than"), _NUMBER),
    **dict.fromkeys(
        (
            "stdout_max",
            "stdout_default",
            "set",
            "set_token_limit",
            "set_token_warning",
            "limit",
            "before",
            "max_tokens",
            "step",
            "max_size",
        ),
        (int,),
    ),
    **dict.fromkeys(
        ("all", "new", "clear_token_limit", "clear_token_warning", "fresh", "buy", "redact", "include_input"), (bool,)
    ),
}
"""What each argument must be where it is given; a caller other than our command line can send anything."""


def _check_types(args: dict[str, Any]) -> None:
    for name, value in args.items():
        wanted = _TYPES.get(name)
        if wanted is None:
            raise UsageError(
                f"no such argument: {name[:40]!r}", hint="client and daemon differ: rlm-sandbox broker stop"
            )
        if value is None:
            continue
        most = USD_MAX if name == "set_cost_limit" else NUMBER_MAX
        wrong = type(value) not in wanted or not _is_text(value) or (name in _TEXTS and not _are_texts(value))
        if wrong or (type(value) in _NUMBER and not 0 <= value <= most):
            raise UsageError(f"{name} makes no sense: {one_line(str(value), 40)}", hint="see rlm-sandbox --help")


_TEXTS = ("environment", "engine")


def _are_texts(value: Any) -> bool:
    return all(isinstance(text, str) and _is_text(text) for text in value.values())


def _is_text(value: Any) -> bool:
    """Whether a value, or what a mapping holds, can be a name of the system: no null character, nothing that is no Unicode but a name's odd bytes."""
    if isinstance(value, dict):
        return all(map(_is_text, [*value, *value.values()]))
    try:
        return not isinstance(value, str) or b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


USD_MAX = 10**9
"""As a start's ``--cost-limit``; what is counted in micro-USD then fits the ledger's integers many times."""

NUMBER_MAX = 2**53
"""What JSON carries exactly; beyond any sensible time, size or count. Also keeps infinity and NaN out."""


_NEEDED = {"start": ("input", "--input"), "export": ("target", "-o")}
"""What an operation cannot do without, and the option that says it."""


async def perform(ctx: Context, op: str, args: dict[str, Any], body: bytes) -> dict[str, Any] | bytes:
    """Run one operation and return its document (JSON-ready) or raw bytes. Raises :class:`RLMError`."""
    operation = OPERATIONS.get(op)
    if operation is None:
        raise UsageError(f"unknown operation {op[:40]!r}", hint="client and daemon differ: rlm-sandbox broker stop")
    _check_types(args)
    needed, option = _NEEDED.get(op, ("", ""))
    if needed and not args.get(needed):
        raise UsageError(f"no {needed} was named", hint=f"use {option} PATH")
    document = await operation(ctx, args, body)
    if isinstance(document, (dict, bytes)):
        return document
    dumped: dict[str, Any] = document.model_dump(mode="json")
    return dumped
