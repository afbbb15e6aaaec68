"""From the options of ``start`` to the daemon's arguments; the command line and the Python API both come through here."""

from __future__ import annotations

import os
from typing import Any

from rlm_sandbox import settings
from rlm_sandbox.errors import UsageError

_RENAMED = {"model": "sub_model", "budget": "budget_limit"}


def start_arguments(
    path: str | bytes | os.PathLike[str],
    *,
    session: str | None = None,
    glob: str | None = None,
    exclude: str | None = None,
    snapshot: bool = False,
    bind: bool = False,
    fresh: bool = False,
    question: str | None = None,
    new: bool = False,
    **flags: Any,
) -> dict[str, Any]:
    """Return the arguments of the ``start`` operation. ``flags`` are the options of ``rlm-sandbox start``, dashes as underscores."""
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise UsageError("the input is empty", hint="name a file or a directory")
    if snapshot and bind:
        raise UsageError("--snapshot and --bind exclude each other", hint="choose one")
    models_allowed = flags.get("allow_model")
    if models_allowed:
        items = [models_allowed] if isinstance(models_allowed, str) else models_allowed
        flags["allow_model"] = [part for item in items for part in item.split(",") if part]
    else:
        flags.pop("allow_model", None)
    return {
        "input": os.path.abspath(name),  # noqa: PTH100 - must not resolve links, and keeps undecodable bytes
        "mode": "bind" if bind else "snapshot" if snapshot else "auto",
        "session": session,
        "glob": glob or None,  # rlm-skill takes an empty one for none: --glob "$PATTERNS"
        "exclude": exclude or None,
        "fresh": fresh,
        "question": question,
        "new": new,
        "environment": settings.client_environment(),
        "engine": settings.engine_variables(),
        "flags": {_RENAMED.get(key, key): _plain(key, value) for key, value in flags.items() if value is not None},
    }


def _plain(name: str, value: Any) -> Any:
    """Return an option as JSON can carry it; a path as one that means the same in the daemon's folder."""
    if name in {"script", "gguf", "session_dir"}:
        return settings.absolute(os.fspath(value))
    return value
