"""What the daemon can be asked about records: bring a session back, export it, forget it."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox.container.admission import host_path
from rlm_sandbox.errors import NoSuchSession, UsageError
from rlm_sandbox.record import history
from rlm_sandbox.record.export import Options, export
from rlm_sandbox.record.recording import folder_of
from rlm_sandbox.sanitize import visible
from rlm_sandbox.session import documents, places
from rlm_sandbox.session.late import UNKNOWN, late_digest
from rlm_sandbox.session.start import StartRequest
from rlm_sandbox.session.store import META, Store, check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_sandbox.daemon.ops import Context
    from rlm_sandbox.record.export import Exported
    from rlm_sandbox.session.host import Host

DAY_S = 86400.0
PLACE = "RLM_SESSION_DIR"


def latest(home: Path, session: str | None, named: str | None = None) -> str:
    """Return ``session``, or the name of the session that was used last, wherever it lies."""
    if session is not None:
        return check_name(session)
    found = next(history.entries(*places.roots(home, named)), None)
    if found is None:
        raise NoSuchSession("no session is on record", hint="start one: rlm-sandbox start --input PATH")
    return found.session


async def resume(ctx: Context, args: dict[str, Any], _: bytes) -> dict[str, Any]:
    """Bring back a session that is not live, with its variables."""
    home, named = ctx.host.home, (args.get("environment") or {}).get(PLACE)
    name = await asyncio.to_thread(latest, home, args.get("session"), named)
    await ctx.host.settled(name)
    if name in ctx.host.sessions:  # it has what it had: nothing to do is no failure
        here = await documents.started(ctx.host.sessions[name], reopened=False, told=[])
        return {**here.model_dump(mode="json"), "restored_cells": [], "continuing": None, "divergence": None}
    folder = await asyncio.to_thread(places.folder_of, home, name, META, named)
    meta = None if folder is None else await asyncio.to_thread(Store(folder.parent, name).load_meta)
    how = (meta or {}).get("request")
    if folder is None or not isinstance(how, dict):
        raise NoSuchSession(f"session {name} is not on record", hint="see rlm-sandbox history")
    request = StartRequest(
        input=str(how["input"]),
        session=name,
        glob=how.get("glob"),
        exclude=how.get("exclude"),
        mode=str(how.get("mode", "auto")),
        flags={**(how.get("flags") or {}), "session_dir": str(folder.parent)},
        environment=args.get("environment") or {},
        engine=args.get("engine"),
        question=how.get("question"),
        fresh=bool(args.get("fresh")),
        buy=bool(args.get("buy")),
        before=args.get("before"),
    )
    started = await ctx.host.start(request, lambda text: ctx.progress({"message": text}))
    outcome = ctx.host.find(name).chronicle.outcome
    found = outcome.divergence
    return {
        **started.model_dump(mode="json"),
        "restored_cells": outcome.cells,
        "continuing": outcome.continuing,
        "divergence": None
        if found is None
        else {"cell": found.cell, "call": found.call, "what": visible(found.what), "text": visible(str(found))},
    }


def secrets_of(environment: Mapping[str, str]) -> list[bytes]:
    """Return the keys in a caller's environment."""
    return [value.encode() for name, value in environment.items() if name.endswith("_API_KEY") and value]


async def export_session(ctx: Context, args: dict[str, Any], _: bytes) -> dict[str, Any]:
    """Write the bundle of a session, live or not."""
    host: Host = ctx.host
    environment = args.get("environment") or {}
    named = environment.get(PLACE)
    name = await asyncio.to_thread(latest, host.home, args.get("session") or _only(host), named)
    secrets = secrets_of(environment)
    live = host.sessions.get(name)
    source: Path | None = None
    if live is not None:
        ctx.progress({"message": "waiting for the digest of the input"})
        await live.chronicle.finish_input(None)
        await asyncio.to_thread(live.chronicle.journal.sync)
        source = host_path(live.admitted.mounts, live.admitted.config["path"])
        key = live.account.spec.credentials.api_key
        secrets += [key.reveal().encode()] if key else []
    options = Options(
        redact=bool(args.get("redact")),
        include_input=bool(args.get("include_input")),
        source=source,
        sign_key=Path(args["sign_key"]) if args.get("sign_key") else None,
        secrets=secrets,
    )
    folder = live.store.folder if live is not None else await asyncio.to_thread(folder_of, host.home, name, named)
    return await asyncio.to_thread(export_folder, folder, Path(args["target"]), options)


def _only(host: Host) -> str | None:
    return next(iter(host.sessions)) if len(host.sessions) == 1 else None


def export_folder(folder: Path, target: Path, options: Options) -> dict[str, Any]:
    """Write the bundle of a session's folder and return the document; blocks."""
    if options.source is None:
        store = Store(folder.parent, folder.name)
        source = Path(str(((store.load_meta() or {}).get("request") or {}).get("input", "")))
        late_digest(store, source)
        options = Options(options.redact, options.include_input, source, options.sign_key, options.secrets)
    written = export(folder, target, options)
    return _document(written, options)


def _document(written: Exported, options: Options) -> dict[str, Any]:
    past = written.past
    return {
        "format_version": 1,
        "session": past.latest.session if past.latest else None,
        "file": str(written.path),
        "bytes": written.size,
        "bundle_sha256": written.sha256,
        "redacted": options.redact,
        "input_included": options.include_input,
        "signed": options.sign_key is not None,
        "cells": len(past.cells),
        "calls": len(past.calls),
        "journal_head": past.head,
        "final_sha256": past.final.digest if past.final else None,
        "warnings": [] if past.input is not None and past.input.digest is not None else [UNKNOWN],
    }


async def forget(ctx: Context, args: dict[str, Any], _: bytes) -> dict[str, Any]:
    """Remove every trace of a session; what the day has spent stays counted."""
    name = check_name(str(args.get("session") or ""))
    found = await erase(ctx.host, name, args.get("root"))
    return {"format_version": 1, "session": name, "forgotten": found}


async def erase(host: Host, name: str, named: str | None = None) -> bool:
    """Stop a session, remove its folder, its cached answers and what the ledger says about it; False when there was nothing."""
    async with host.erasing:  # two at one folder would each find it half gone
        await host.settled(name)
        return await _erase(host, name, named)


async def _erase(host: Host, name: str, named: str | None) -> bool:
    live = host.sessions.get(name)
    roots = await asyncio.to_thread(places.roots, host.home, named)
    if live is not None and live.store.folder.parent not in roots:
        roots.append(live.store.folder.parent)
    await host.stop(name)
    removed = [await asyncio.to_thread(history.remove, root, name) for root in roots]
    return await host.broker.erase(name) or any(removed)


async def sweep(host: Host, older_than_days: float | None, max_size: int | None) -> list[str]:
    """Forget sessions that are old, and then the oldest until the rest fits; live ones stay."""
    await asyncio.to_thread(_clear_scratch, host.home / "tmp")
    if older_than_days is None and max_size is None:
        return []
    await asyncio.to_thread(places.prune, host.home)
    found = await asyncio.to_thread(lambda: list(history.entries(*places.roots(host.home))))
    old = None if older_than_days is None else older_than_days * DAY_S
    gone = []
    for entry in history.surplus(found, older_than_s=old, max_size=max_size, now=time.time()):
        if host.busy(entry.session):
            continue
        try:
            await erase(host, entry.session)
        except UsageError:
            continue  # live in another process
        gone.append(entry.session)
    return gone


def _clear_scratch(folder: Path) -> None:
    """Remove what killed replays left: none takes a day."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if time.time() - path.stat().st_mtime > DAY_S:
            shutil.rmtree(path, ignore_errors=True)


OPERATIONS: dict[str, Any] = {"resume": resume, "export": export_session, "forget": forget}
