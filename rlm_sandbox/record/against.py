"""A recorded program once more, live, with another model: the same cells on the same input, and then the comparison.

This buys: it is a session like any other, with its own caps, and stays on record under its own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm_sandbox import settings
from rlm_sandbox.daemon import client, request
from rlm_sandbox.errors import BundleError
from rlm_sandbox.record import recording as recordings
from rlm_sandbox.record.diff import compare
from rlm_sandbox.session.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.record.recording import Recording

_TAKEN = ("image", "memory", "cpus", "cell_timeout", "concurrency", "clock")


def run_against(
    run: Recording,
    source: Path,
    model: str,
    options: dict[str, Any],
    progress: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], bytes | None]:
    """Run the record's cells with ``model`` and return the comparison (``a`` is the record) and the new final answer."""
    start = run.past.latest
    if start is None:
        raise BundleError("this record holds no run", hint="export a session in which cells have run")
    kept = {name: start.settings[name] for name in _TAKEN if start.settings.get(name) is not None}
    provider = options.get("provider") or start.provider
    given = {name: value for name, value in options.items() if value is not None}
    arguments = request.start_arguments(
        source,
        glob=start.input.glob,
        exclude=start.input.exclude,
        question=start.question,
        **{**kept, **given, "provider": provider, "model": model},
    )
    session = client.call("start", arguments, progress=progress)["session"]
    try:
        for cell in run.past.cells.values():
            if cell.status == "kernel_died":
                continue
            progress({"message": f"cell {cell.number} of {len(run.past.cells)} with {model}"})
            code = run.read(cell.code)
            client.call("exec", {"session": session, "timeout": cell.timeout_s}, code, spawn=False)
    finally:
        client.call("stop", {"session": session}, spawn=False)
    folder = recordings.folder_of(settings.home(), session, settings.session_root())
    with recordings.of_session(folder) as made:
        final = Store(folder.parent, session).read_final() if made.past.final else None
        return {**compare(run, made), "session": session, "against": model, "divergence": None}, final
