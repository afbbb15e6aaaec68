"""The permission rules of the client, and their merging into a settings file that belongs to the user.

A settings file is changed only when the user asks, only by adding what is missing, and by rename, so that a reader never sees half of it. A
file that is not a JSON object of the expected shape is refused: guessing what it meant is not ours to do.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import UsageError
from rlm_sandbox.skill.files import NAME

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = f"Bash({NAME} *)"
EXCLUDED = f"{NAME} *"
"""For ``sandbox.excludedCommands``: the client's sandbox blocks the Unix socket that the command line speaks through."""


def allowed(*, plugin: bool) -> list[str]:
    """Return the rules under which the client never asks again."""
    return [f"Skill({NAME}:{NAME})" if plugin else f"Skill({NAME})", COMMAND]


def wanted(*, plugin: bool) -> dict[str, Any]:
    """Return the same as a part of a settings file."""
    return {"permissions": {"allow": allowed(plugin=plugin)}}


def merge(path: Path, *, plugin: bool) -> list[str]:
    """Add the rules to a settings file and return those that were missing.

    Where the file turns the client's sandbox on, the command line is also excluded from it. Raises :class:`UsageError`.
    """
    settings = _read(path)
    added = _add(path, settings, ("permissions", "allow"), allowed(plugin=plugin))
    sandbox = settings.get("sandbox")
    if isinstance(sandbox, dict) and sandbox.get("enabled") is True:
        added += _add(path, settings, ("sandbox", "excludedCommands"), [EXCLUDED])
    if added:
        _write(path, settings)
    return added


def check(path: Path, *, plugin: bool) -> None:
    """Raise :class:`UsageError` where :func:`merge` would for what the file says, and change nothing: before anything is installed."""
    settings = _read(path)
    _add(path, settings, ("permissions", "allow"), allowed(plugin=plugin))
    if isinstance(settings.get("sandbox"), dict):
        _add(path, settings, ("sandbox", "excludedCommands"), [EXCLUDED])


def withdraw(path: Path) -> list[str]:
    """Take our rules out of a settings file and return those that were there."""
    settings = _read(path)
    ours = {*allowed(plugin=False), *allowed(plugin=True)}
    removed = _drop(settings, ("permissions", "allow"), ours)
    removed += _drop(settings, ("sandbox", "excludedCommands"), {EXCLUDED})
    if removed:
        _write(path, settings)
    return removed


def _add(path: Path, settings: dict[str, Any], place: tuple[str, str], entries: list[str]) -> list[str]:
    section, name = place
    part = settings.setdefault(section, {})
    known = part.setdefault(name, []) if isinstance(part, dict) else None
    if not isinstance(known, list):
        raise UsageError(f"{path}: {section}.{name} is not a list", hint="correct the file, or add the rules by hand")
    missing = [entry for entry in entries if entry not in known]
    known += missing
    return missing


def _drop(settings: dict[str, Any], place: tuple[str, str], entries: set[str]) -> list[str]:
    part = settings.get(place[0])
    known = part.get(place[1]) if isinstance(part, dict) else None
    if not isinstance(known, list):
        return []
    dropped = [entry for entry in known if isinstance(entry, str) and entry in entries]
    known[:] = [entry for entry in known if entry not in dropped]
    return dropped


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8").strip() or "{}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}", hint="correct the file, or add the rules by hand") from exc
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a JSON object", hint="correct the file, or add the rules by hand")
    return found


def _text(settings: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can spell
        return (json.dumps(settings, indent=2) + "\n").encode()


def _write(path: Path, settings: dict[str, Any]) -> None:
    target = path.resolve()  # settings are often a link into a folder of dotfiles: change what it points to
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        draft.write_bytes(_text(settings))
        draft.chmod(mode)
        draft.replace(target)
    except OSError as exc:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {exc.strerror}", hint="add the rules by hand") from exc
