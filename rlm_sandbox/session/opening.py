"""What a session's start leaves behind: the journal's ``start`` record, and what a later ``resume`` needs to start it again.

Neither holds a credential: settings are the validated ones, among which there is none, and keys come again from the environment of whoever
resumes.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlm_sandbox import __version__
from rlm_sandbox.sanitize import visible
from rlm_sandbox.wire import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.container.image import ImageInfo
    from rlm_sandbox.container.profile import RunProfile
    from rlm_sandbox.session.start import StartRequest
    from rlm_sandbox.settings.model import Settings
    from rlm_sandbox.wire.messages import Report

QUESTION_MAX = 65536

UNPROVEN = "input_unproven"
"""Key in a start record's ``report``: true where the engine read the input on another machine and not all of it was compared with the file here."""

_LINE = 8192

_PLACES = frozenset({"session_dir", "script", "gguf"})
"""Settings that name places of this machine and mean nothing to a reader elsewhere."""


def start_record(
    *,
    session: str,
    request: StartRequest,
    admitted: Admitted,
    image: ImageInfo,
    engine: str,
    profile: RunProfile,
    report: Report,
    settings: Settings,
    provider: str,
    model: str,
    go: bytes,
    reopened: bool,
) -> dict[str, Any]:
    """Return the body of a ``start`` record."""
    chosen = settings.model_dump(mode="json", exclude=set(_PLACES))
    seen = {key: value for key, value in asdict(report).items() if key not in {"mounts", "env", "groups"}}
    seen[UNPROVEN] = admitted.unproven
    return {
        "session": session,
        "question": None if request.question is None else request.question[:QUESTION_MAX],
        "input": {
            "kind": admitted.kind,
            "display": visible(admitted.display)[:_LINE],
            "bytes": admitted.total_bytes,
            "files": admitted.file_count,
            "mode": request.mode,
            "glob": None if request.glob is None else request.glob[:_LINE],
            "exclude": None if request.exclude is None else request.exclude[:_LINE],
            "mtime_ns": admitted.identity.mtime_ns,
        },
        "image": {"name": settings.image[:512], "id": image.id, "python": report.python},
        "runtime": settings.runtime or "runc",
        "provider": provider,
        "model": model[:512],
        "profile": profile.summary(),
        "report": seen,
        "settings": chosen,
        "go": json.loads(go),
        "versions": {
            "rlm-sandbox": __version__,
            "protocol": PROTOCOL_VERSION,
            "guest": report.guest_version,
            "python": platform.python_version(),
            "system": f"{sys.platform} {platform.release()} {platform.machine()}",
            "engine": engine,
        },
        "reopened": reopened,
    }


def resume_request(
    request: StartRequest, settings: Settings, provider: str, model: str, *, without: Iterable[str]
) -> dict[str, Any]:
    """Return how to start the session again: with every setting that was in force, but no key and none of the caps ``without``."""
    flags = settings.model_dump(mode="json", exclude_none=True, exclude=set(without))
    flags.update(provider=provider, sub_model=model)
    return {
        "input": request.input,
        "glob": request.glob,
        "exclude": request.exclude,
        "mode": request.mode,
        "question": request.question,
        "flags": flags,
    }
