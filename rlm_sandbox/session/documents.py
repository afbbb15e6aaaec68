"""What a session tells of itself: the public documents, made from hostile parts. Every text in them is visible and bounded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlm_sandbox.models import Executed, FilePreview, FinalAnswer, LanguageSize, SessionStatus, Started
from rlm_sandbox.sanitize import one_line, visible
from rlm_sandbox.session.convert import budget_state, usd

if TYPE_CHECKING:
    from rlm_sandbox.session.cell import CellRun
    from rlm_sandbox.session.live import LiveSession
    from rlm_sandbox.session.store import Store

PATH_MAX = 4096
"""Characters of a path in a document: what the kernel allows in bytes."""


async def started(live: LiveSession, *, reopened: bool, told: list[str]) -> Started:
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


async def executed(live: LiveSession, run: CellRun, stdout_max: int) -> Executed:
    """Return a cell as it stands."""
    text, truncated, path = run.spool.shown(stdout_max)
    warnings = list(run.warnings)
    changed = live.admitted.changed() if live.ended is None else None  # an ending session gives its descriptor up
    if changed and not any("changed" in text for text in warnings):
        warnings.append(one_line(changed))
    warnings += [one_line(text) for text in live.account.take_warnings()]
    return Executed(
        session=live.session,
        cell=run.cell,
        status=run.status,
        stdout=text,
        stdout_len=run.spool.chars,
        stdout_truncated=truncated,
        stdout_full_path=path,
        error=run.error,
        final=run.final,
        variables=live.variables,
        variables_total=live.variables_total,
        budget=budget_state(await live.account.budget()),
        warnings=warnings,
        elapsed_ms=run.elapsed_ms,
    )


async def status(live: LiveSession) -> SessionStatus:
    """Return what ``list`` and ``status`` show."""
    return SessionStatus(
        session=live.session,
        status="running" if live.running else "live",
        input=visible(live.admitted.display),
        created_at=live.created.isoformat(timespec="seconds"),
        updated=int(live.updated),
        idle_s=round(time.monotonic() - live.touched, 1),
        cell=live.last_cell,
        container=live.container,
        image=live.settings.image,
        runtime=live.runtime,
        provider=live.provider,
        model=live.model,
        session_dir=str(live.store.folder),
        variables=live.variables,
        final=live.final,
        budget=budget_state(await live.account.budget()),
    )


def final(store: Store, kind: str, name: str | None, length: int, *, preview: int) -> FinalAnswer:
    """Return the kept final answer; ``length`` and ``preview`` in characters."""
    with store.final.open("rb") as stream:
        head = stream.read(4 * preview).decode("utf-8", "replace")
    return FinalAnswer(
        kind="var" if kind == "var" else "direct",
        name=None if name is None else visible(name),
        length=length,
        saved_to=str(store.final),
        preview=visible(head[:preview])[:preview],
    )
