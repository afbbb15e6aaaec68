"""Where sessions' folders lie: below ``sessions`` in the state folder, or wherever ``RLM_SESSION_DIR`` put them.

Every other folder that a session was started in is noted in the state folder's ``places`` (JSON strings, one a line), so that a session is found, listed and
forgotten by whoever does not have the variable set.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_sandbox.errors import NoSuchSession, UsageError
from rlm_sandbox.sanitize import one_line
from rlm_sandbox.session.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "places"


def usual(home: Path) -> Path:
    """Return where sessions lie unless somebody says otherwise."""
    return home / "sessions"


def roots(home: Path, named: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return every folder in which sessions may lie: the ``named`` one first, then the usual one, then those noted."""
    first = [] if named is None else [home / named]
    return list(dict.fromkeys([*first, usual(home), *_read(home / NAME)]))


def folder_of(home: Path, session: str, having: str, named: str | os.PathLike[str] | None = None) -> Path | None:
    """Return a session's folder, the first that has a file ``having``; None when no root has one. Blocks."""
    folders = (Store(root, session).folder for root in roots(home, named))
    return next((folder for folder in folders if (folder / having).is_file()), None)


def kept_final(home: Path, session: str, named: str | None) -> bytes:
    """Return the answer that an ended session left, wherever it lies. Raises :class:`NoSuchSession`."""
    try:
        stores = [Store(root, session) for root in roots(home, named)]
    except UsageError as exc:
        raise NoSuchSession(f"no session {one_line(session, 80)!r}", hint="see rlm-sandbox list") from exc
    return next((store for store in stores if store.final.exists()), stores[0]).read_final()


def note(home: Path, root: Path) -> None:
    """Remember that sessions lie below ``root``. Blocks."""
    if root != usual(home) and root not in _read(home / NAME):
        _write(home / NAME, [root], os.O_APPEND)


def prune(home: Path) -> None:
    """Forget roots that are gone. Blocks."""
    noted = _read(home / NAME)
    kept = [root for root in noted if root.is_dir()]
    if kept != noted:
        _write(home / NAME, kept, os.O_TRUNC)


def _read(file: Path) -> list[Path]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(path for line in lines if (path := _path(line)) is not None))


def _path(line: bytes) -> Path | None:
    try:
        text = json.loads(line)
    except ValueError:
        return None
    return Path(text) if isinstance(text, str) and text.startswith("/") and "\0" not in text else None


def _write(file: Path, places: Iterable[Path], how: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (how & os.O_APPEND)
    with os.fdopen(os.open(file, flags, 0o600), "wb") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if how & os.O_TRUNC:
            out.truncate(0)
        out.write(b"".join(json.dumps(str(place)).encode() + b"\n" for place in places))
