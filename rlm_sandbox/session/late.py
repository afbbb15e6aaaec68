"""The digest of an input whose session ended before it was read to its end: taken later, if the input is provably what it was.

Size and time of modification say so of a file. Of a directory its files are admitted again by the same rules; they must be as many and as large, and
neither one of them nor a folder on the way to one may have been touched (``ctime``, which nobody can set back) since the session's folder was
first claimed, which is before the first byte was staged.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rlm_sandbox.container.admission import admit
from rlm_sandbox.errors import RLMError
from rlm_sandbox.session import resume
from rlm_sandbox.session.fingerprint import Fingerprint, Pace, digest_of, manifest_paths, take
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.opening import UNPROVEN

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_sandbox.session.records import Start
    from rlm_sandbox.session.store import Store

MARGIN_NS = 10_000_000
"""How coarse the clock of a file system may be: two ticks of the slowest kernel."""

UNKNOWN = "the record does not say what the input was (its digest was not known when the session ended, and the input has changed since or is gone, or an engine on another machine read it)"


def late_digest(store: Store, source: Path) -> None:
    """Write down the input's digest if the record has none and it can still be known; blocks, as long as reading it takes."""
    past = resume.load(store)
    start = past.latest
    if start is None or (past.input is not None and past.input.digest is not None):
        return
    if start.report.get(UNPROVEN):
        return  # what lies here need not be what the cells have read
    try:
        store.claim()
    except RLMError:
        return  # live in another process
    try:
        found = _file(store, start, source) if start.input.kind == "file" else _directory(store, start, source)
        if found is not None:
            _write(store, found)
    except (RLMError, OSError):
        return
    finally:
        store.release()


def _write(store: Store, found: Fingerprint) -> None:
    journal = Journal(store.folder)
    try:
        manifest = None if found.manifest is None else journal.blob(found.manifest)
        index = None if found.index is None else journal.blob(found.index)
        journal.append("input", digest=found.digest, bytes=found.size, manifest=manifest, index=index)
    finally:
        journal.close()


def _file(store: Store, start: Start, source: Path) -> Fingerprint | None:
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        same = before.st_mtime_ns == start.input.mtime_ns or before.st_ctime_ns < _claimed_ns(store)
        if before.st_size != start.input.bytes or not same:
            return None
        digest, size = digest_of(descriptor, Pace(gentle=False))
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return Fingerprint(digest, size) if after.st_ctime_ns == before.st_ctime_ns and size == after.st_size else None


def _directory(store: Store, start: Start, source: Path) -> Fingerprint | None:
    most = start.settings.get("max_per_file_bytes")
    if type(most) is not int:
        return None
    admitted = admit(
        source,
        glob=start.input.glob,
        exclude=start.input.exclude,
        mode=start.input.mode,
        stage_dir=store.folder / "late",
        max_file_bytes=most,
    )
    try:
        if (admitted.kind, admitted.total_bytes, admitted.file_count) != (
            "directory",
            start.input.bytes,
            start.input.files,
        ):
            return None
        found = take(admitted, Pace(gentle=False))
    finally:
        admitted.close()
    if found.digest is None or found.manifest is None or not _untouched(source, found.manifest, _claimed_ns(store)):
        return None
    return found


def _untouched(source: Path, manifest: bytes, since_ns: int) -> bool:
    """Tell whether none of the files, and no folder on the way to one, changed after a moment."""
    folders = {source}
    for name in manifest_paths(manifest):
        path = source / name
        if path.lstat().st_ctime_ns >= since_ns:
            return False
        while (path := path.parent) not in folders:
            folders.add(path)
    return all(folder.stat().st_ctime_ns < since_ns for folder in folders)


def _claimed_ns(store: Store) -> int:
    return store.claimed_at.stat().st_mtime_ns - MARGIN_NS
