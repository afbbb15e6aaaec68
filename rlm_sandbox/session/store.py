"""A session's folder: what outlives the container.

``meta.json`` (how it was started, without secrets), ``final.txt``, ``stdout-N.txt``, ``journal.jsonl``, ``blobs.pack`` and ``stage/`` (the admitted copy of
an input, removed at stop). Folders are 0700 and files 0600. A session's name is a path component, so it is checked before it is one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import NoSuchSession, PrerequisiteError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

META = "meta.json"

AGAIN_FINAL = ".final.again"
"""The answer of a cell that only repeats a recorded one."""

FINAL_MAX = 1024 * 1024 * 1024
"""Bytes of a final answer: what fits in the default container's memory, with no room for more."""


def new_name() -> str:
    """Return a fresh session name: ten hexadecimal digits, as rlm-skill's."""
    return secrets.token_hex(5)


def check_name(name: str) -> str:
    """Return ``name`` if it may be a session's; raises :class:`UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot be a session's name",
            hint="use letters, digits, dot, dash and underscore, 64 at most, not beginning with a sign",
        )
    return name


class Store:
    """The folder of one session."""

    def __init__(self, root: Path, session: str) -> None:
        self.folder = root / check_name(session)
        self._claim = -1

    @property
    def stage(self) -> Path:
        """Where the admitted copy of the input lies."""
        return self.folder / "stage"

    @property
    def claimed_at(self) -> Path:
        """The lock, which nobody writes to: its time is that of the first claim."""
        return self.folder / "lock"

    @property
    def final(self) -> Path:
        """The last complete final answer, as raw bytes."""
        return self.folder / "final.txt"

    def create(self) -> None:
        """Make the folder, private to the user."""
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            others = [folder for folder in (self.folder, self.folder.parent) if not ours(folder)]
        except OSError as exc:
            raise PrerequisiteError(
                f"the session's folder {self.folder} cannot be made: {exc.strerror}",
                hint="check RLM_SESSION_DIR, or set RLM_SANDBOX_HOME to a folder you may write",
            ) from exc
        if others:
            raise PrerequisiteError(
                f"the session's folder {others[0]} belongs to another user, who could replace what is in it",
                hint="set RLM_SESSION_DIR to a folder of your own",
            )
        if stat.S_IMODE(self.folder.stat().st_mode) & 0o077:
            self.folder.chmod(0o700)

    def claim(self) -> None:
        """Take the session for this process, which holds it until :meth:`release` or its own end, however it ends.

        Raises:
            UsageError: another process has it.
        """
        self.create()
        try:
            lock = os.open(self.claimed_at, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise PrerequisiteError(
                f"session {self.folder.name} cannot be locked: {self.claimed_at}: {exc.strerror}",
                hint="remove what lies there, or choose another --session",
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UsageError(
                f"session {self.folder.name} is live in another process",
                hint="use it there, or choose another --session",
            ) from None
        self._claim = lock

    def release(self) -> None:
        """Give the session up; a folder in which nothing else was ever put goes."""
        if self._claim >= 0:
            with contextlib.suppress(OSError):
                if os.listdir(self.folder) == ["lock"]:  # noqa: PTH208 - names are all that is asked for
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()
            os.close(self._claim)
            self._claim = -1

    def stdout(self, cell: int) -> Path:
        """Return where the whole output of a cell goes."""
        return self.folder / f"stdout-{cell}.txt"

    def save_meta(self, meta: dict[str, Any]) -> None:
        """Write ``meta.json`` atomically."""
        partial = self.folder / ".meta.part"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
        partial.replace(self.folder / META)

    def load_meta(self) -> dict[str, Any] | None:
        """Return what :meth:`save_meta` wrote, or None."""
        try:
            loaded = json.loads((self.folder / META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return loaded if isinstance(loaded, dict) else None

    def read_final(self) -> bytes:
        """Return the answer's bytes; raises :class:`NoSuchSession` when there is none."""
        try:
            return self.final.read_bytes()
        except FileNotFoundError:
            raise NoSuchSession(
                f"session {self.folder.name} has no final answer",
                hint="call FINAL(answer) or FINAL_VAR('name') in a cell first",
            ) from None
        except OSError as exc:
            raise PrerequisiteError(
                f"the final answer cannot be read: {self.final}: {exc.strerror}", hint="remove what lies there"
            ) from exc

    def drop_stage(self) -> None:
        """Remove the copy of the input."""
        shutil.rmtree(self.stage, ignore_errors=True)


def ours(folder: Path) -> bool:
    """Whether nobody but this user and root can put something else in the place of a folder's entries."""
    found = folder.stat()
    return found.st_uid in {os.getuid(), 0}


class FinalWriter:
    """Gathers the pieces of one final answer in a partial file; nothing is visible until :meth:`commit`."""

    def __init__(self, store: Store) -> None:
        self._path = store.folder / ".final.part"
        self._target = store.final
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")
        self._sum = hashlib.sha256()
        self.size = 0
        self.complete = False

    @property
    def digest(self) -> str:
        """SHA-256 of what was added."""
        return self._sum.hexdigest()

    def add(self, data: bytes, *, last: bool) -> bool:
        """Append a piece; False when the answer is too large or was already complete."""
        self.size += len(data)
        if self.complete or self.size > FINAL_MAX:
            return False
        self._sum.update(data)
        self._file.write(data)
        self.complete = last
        return True

    def commit(self, target: Path | None = None) -> None:
        """Make the answer the session's, or put it at ``target``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(target or self._target)

    def abandon(self) -> None:
        """Forget an incomplete answer."""
        self._file.close()
        self._path.unlink(missing_ok=True)
