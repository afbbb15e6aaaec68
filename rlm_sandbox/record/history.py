"""Past runs: what is on record in a state folder, and how to be rid of it."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import UsageError
from rlm_sandbox.sanitize import one_line, visible
from rlm_sandbox.session import journal
from rlm_sandbox.session.pack import NAME as PACK
from rlm_sandbox.session.store import Store, ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREVIEW = 200
"""Characters of question and answer in a list."""


@dataclass(frozen=True)
class Entry:
    """One session on record. ``updated`` is epoch seconds, ``bytes`` what its folder takes."""

    session: str
    input: str
    question: str | None
    provider: str
    model: str
    created_at: str | None
    updated: float
    size: int
    folder: Path

    def document(self) -> dict[str, Any]:
        """Return its JSON form, with what only the journal knows."""
        cells, calls, final = _counts(self.folder)
        return {
            "session": self.session,
            "input": self.input,
            "question": None if self.question is None else one_line(self.question, PREVIEW),
            "provider": self.provider,
            "model": self.model,
            "created_at": self.created_at,
            "updated_at": datetime.fromtimestamp(self.updated, UTC).isoformat(timespec="seconds"),
            "cells": cells,
            "calls": calls,
            "final_preview": final,
            "bytes": self.size,
            "session_dir": str(self.folder),
        }


def entries(*roots: Path) -> Iterator[Entry]:
    """Yield the sessions below ``roots``, the latest first."""
    found = [entry for root in roots for folder in _folders(root) if (entry := _entry(folder)) is not None]
    yield from sorted(found, key=lambda each: each.updated, reverse=True)


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if not path.is_symlink() and path.is_dir() and ours(path)]
    except OSError:
        return []  # gone, or not ours to look into


def _entry(folder: Path) -> Entry | None:
    try:
        meta = Store(folder.parent, folder.name).load_meta()
    except UsageError:
        return None
    if meta is None:
        return None
    request = meta.get("request") if isinstance(meta.get("request"), dict) else {}
    question = (request or {}).get("question")
    record = folder / journal.NAME
    try:
        files = [path.lstat() for path in folder.iterdir()]
        updated = record.stat().st_mtime if record.exists() else folder.stat().st_mtime
    except OSError:
        return None  # it is being forgotten
    return Entry(
        session=folder.name,
        input=visible(str(meta.get("input", ""))),
        question=question if isinstance(question, str) else None,
        provider=visible(str(meta.get("provider", ""))),
        model=visible(str(meta.get("model", ""))),
        created_at=meta.get("created_at") if isinstance(meta.get("created_at"), str) else None,
        updated=updated,
        size=sum(info.st_size for info in files if stat.S_ISREG(info.st_mode)),
        folder=folder,
    )


def matches(entry: Entry, find: str | None) -> bool:
    """Tell whether ``find`` occurs in the session's name, input or question, in any case of letters."""
    if not find:
        return True
    wanted = find.casefold()
    return any(wanted in (text or "").casefold() for text in (entry.session, entry.input, entry.question))


def _counts(folder: Path) -> tuple[int, int, str | None]:
    """Return how many cells and calls a journal has, without trusting or parsing it, and the beginning of the answer."""
    cells, calls = set(), 0
    try:
        for line in journal.lines(folder / journal.NAME):
            head = line[:400]
            if b'"kind":"call"' in head:
                calls += 1
            elif b'"kind":"cell"' in head:
                cells.add(json.loads(line).get("cell"))
    except (OSError, ValueError):
        pass
    try:
        with (folder / "final.txt").open("rb") as file:
            final = one_line(file.read(4 * PREVIEW).decode("utf-8", "replace"), PREVIEW)
    except OSError:
        final = None
    return len(cells), calls, final


def surplus(found: list[Entry], *, older_than_s: float | None, max_size: int | None, now: float) -> list[Entry]:
    """Return what goes: everything older, and then the oldest until the rest fits. ``found`` is sorted, the latest first."""
    gone = [entry for entry in found if older_than_s is not None and now - entry.updated > older_than_s]
    kept = [entry for entry in found if entry not in gone]
    total = sum(entry.size for entry in kept)
    while max_size is not None and kept and total > max_size:
        oldest = kept.pop()
        total -= oldest.size
        gone.append(oldest)
    return gone


def remove(root: Path, session: str) -> bool:
    """Remove a session's folder; False when there was none. Blocks.

    Raises:
        UsageError: the session is live in another process, or something in its folder cannot be removed.
    """
    store = Store(root, session)
    if not store.folder.is_dir():
        return False
    store.claim()
    try:
        (store.folder / journal.NAME).unlink(missing_ok=True)  # first what tells most, should this be cut short
        (store.folder / PACK).unlink(missing_ok=True)
        shutil.rmtree(store.folder)
    except OSError as exc:
        raise UsageError(
            f"{store.folder} cannot be removed: {exc.strerror or exc}",
            hint="remove it by hand; it is not listed any more",
        ) from exc
    finally:
        store.release()
    return True
