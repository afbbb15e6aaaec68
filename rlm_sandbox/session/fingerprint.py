"""What exactly was the input? Its SHA-256, file by file, computed while the session already works.

A large input is read at an eighth of the speed and in small pieces, so that the digest of gigabytes does not compete with the cells; whoever
needs it (an export) takes the brake off and waits. The end of a session does not: what is unknown then is recorded as unknown, because no step may
grow with the input. A digest is only given for bytes that did not change while they were read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm_sandbox.container.admission import host_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.container.admission import Admitted

log = logging.getLogger(__name__)

CHUNK = 512 * 1024
"""Bytes at a time: a third of a millisecond in which a cell may find the processor taken."""

REST = 7
"""Times as long as a piece took."""

GENTLE_FROM = 64 * 1024 * 1024
"""Bytes that are read at full speed: a tenth of a second. Only what is larger is slowed down."""

END_WAIT_S = 0.2
"""How long the end of a session waits for the digest: enough for an input of 64 MiB that was opened a moment ago, and no more for a larger one."""

MANIFEST_MAX = 60 * 1024 * 1024
"""Bytes of a manifest that the journal keeps: half a million files."""


@dataclass(frozen=True)
class Fingerprint:
    """``digest`` of a file, or of ``manifest`` (JSON lines of path, bytes, sha256); ``index`` as the guest has it. Null: it changed, or is gone."""

    digest: str | None
    size: int
    manifest: bytes | None = None
    index: bytes | None = None


class Stopped(Exception):  # noqa: N818 - a signal to a thread
    """Nobody wants the digest any more."""


class Pace:
    """How fast to read; told from another thread."""

    def __init__(self, *, gentle: bool = True) -> None:
        self.hurry = threading.Event()
        self.stop = threading.Event()
        self._read = 0
        if not gentle:
            self.hurry.set()

    def step(self, size: int, took: float) -> None:
        """Account for a chunk, and rest where the input is large."""
        self._read += size
        if self.stop.is_set():
            raise Stopped
        if self._read > GENTLE_FROM:
            self.hurry.wait(REST * took)


def take(admitted: Admitted, pace: Pace) -> Fingerprint:
    """Read the input to its end; blocks. Raises :class:`Stopped` when told to."""
    config = admitted.config
    if admitted.unproven:
        return Fingerprint(None, admitted.total_bytes)
    try:
        if config["index"] is None:
            fd = os.dup(admitted.fd) if admitted.fd >= 0 else _open(host_path(admitted.mounts, config["path"]))
            return _file(fd, admitted, pace)
        return directory(host_path(admitted.mounts, config["path"]), host_path(admitted.mounts, config["index"]), pace)
    except (OSError, ValueError, KeyError) as exc:
        log.info("the input could not be read to its end: %s", exc)
        return Fingerprint(None, admitted.total_bytes)


def _file(fd: int, admitted: Admitted, pace: Pace) -> Fingerprint:
    try:
        before = os.fstat(fd)
        digest, size = digest_of(fd, pace)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) and after.st_size == size
    return Fingerprint(digest if same and admitted.changed() is None else None, size)


def directory(tree: Path, index: Path, pace: Pace) -> Fingerprint:
    """Return the fingerprint of a tree, of the files that its index names."""
    entries, total = [], 0
    raw = index.read_bytes()
    for line in raw.splitlines():
        name = str(json.loads(line)["path"])
        fd = _open(tree / name)
        try:
            digest, size = digest_of(fd, pace)
        finally:
            os.close(fd)
        entries.append(manifest_line(name, size, digest))
        total += size
    manifest = b"".join(entries)
    keep = len(manifest) <= MANIFEST_MAX and len(raw) <= MANIFEST_MAX
    return Fingerprint(hashlib.sha256(manifest).hexdigest(), total, manifest if keep else None, raw if keep else None)


def manifest_line(path: str, size: int, digest: str) -> bytes:
    """Return a file's line of a manifest."""
    return json.dumps({"path": path, "bytes": size, "sha256": digest}, separators=(",", ":")).encode() + b"\n"


def manifest_paths(manifest: bytes) -> list[str]:
    """Return the paths of a manifest that this program made."""
    return [str(json.loads(line)["path"]) for line in manifest.splitlines()]


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def digest_of(fd: int, pace: Pace) -> tuple[str, int]:
    """Return the SHA-256 and the size of an open file; its position is left alone."""
    digest, at = hashlib.sha256(), 0
    while True:
        began = time.monotonic()
        data = os.pread(fd, CHUNK, at)
        if not data:
            return digest.hexdigest(), at
        digest.update(data)
        at += len(data)
        pace.step(len(data), time.monotonic() - began)


class Watch:
    """The fingerprint of a live session's input, on its way to the journal. ``write`` takes the fields of an ``input`` record."""

    def __init__(self, admitted: Admitted, write: Callable[[Fingerprint], Any]) -> None:
        self._pace = Pace()
        self._task = asyncio.create_task(self._run(admitted, write))

    async def _run(self, admitted: Admitted, write: Callable[[Fingerprint], Any]) -> None:
        try:
            write(await asyncio.to_thread(take, admitted, self._pace))
        except Stopped:
            write(Fingerprint(None, admitted.total_bytes))

    async def finish(self, timeout_s: float | None = None) -> None:
        """Read on at full speed and return when the record is written; after ``timeout_s`` without a digest."""
        self._pace.hurry.set()
        done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
        if not done:
            self._pace.stop.set()
            await asyncio.wait({self._task})
