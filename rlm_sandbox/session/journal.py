"""What a run did, in the order it did it: append-only, hash-chained lines, with their bulk beside them.

A record is in the kernel's hands before the effect it tells of becomes visible to anyone: the guest gets an answer only after the line that
holds it was written, so the death of any process loses nothing that somebody saw. A thread syncs both files in the background, as often as
the disk allows while there is something to sync; a power cut costs at most the last moment, whose purchases the ledger has charged anyway.
Each line carries the digest of the one before it, so an edit anywhere shows; a torn last line (a crash in the middle of a write) is cut off
when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rlm_sandbox.errors import BundleError, UsageError
from rlm_sandbox.session.pack import Pack, open_record
from rlm_sandbox.session.records import JOURNAL_VERSION, adapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rlm_sandbox.session.records import AnyRecord

log = logging.getLogger(__name__)

NAME = "journal.jsonl"
GENESIS = "0" * 64

LINE_MAX = 256 * 1024
"""Bytes. Guests name cells, calls and errors only; their texts are in the pack. The longest line is a start, with 40 KiB of limits."""

SYNC_PAUSE_S = 0.02
"""Between two syncs of a busy journal: fifty a second cost a disk little, and bound what a power cut takes."""


class Journal:
    """One per session folder."""

    def __init__(self, folder: Path) -> None:
        _set_aside_other_versions(folder)
        self._pack = Pack(folder)
        self._file = open_record(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._seq, self._last = self._recover()
        self.closed = False
        self._syncer = _Syncer((self._pack.file, self._file))

    def _recover(self) -> tuple[int, str]:
        seq, last, good = 0, GENESIS, 0
        with os.fdopen(os.dup(self._file), "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                seq, last, good = seq + 1, hashlib.sha256(line).hexdigest(), good + len(line)
        os.ftruncate(self._file, good)
        return seq, last

    def append(self, kind: str, **body: object) -> None:
        """Write one record (see :mod:`~rlm_sandbox.session.records`). ``body`` must be JSON and hold no bulk and no secret."""
        record = {
            "v": JOURNAL_VERSION,
            "seq": self._seq,
            "prev": self._last,
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
            "kind": kind,
            **body,
        }
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        self._write(line)
        self._seq += 1
        self._last = hashlib.sha256(line).hexdigest()
        self._syncer.wake()

    def _write(self, line: bytes) -> None:
        """Write a whole line or, on a full disk, none of it."""
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, os.fstat(self._file).st_size - (len(line) - len(view)))
            raise

    def blob(self, data: bytes) -> str:
        """Keep ``data`` under its SHA-256 and return the digest."""
        return self._pack.put(data)

    def text(self, text: str) -> str:
        """As :meth:`blob`, for text; half characters become ``?``."""
        return self._pack.put(text.encode("utf-8", "replace"))

    def read(self, digest: str) -> bytes:
        """Return a blob; ``KeyError`` when it is not here."""
        return self._pack.get(digest)

    def holds(self, digest: str) -> bool:
        """Tell whether a blob is here and whole."""
        try:
            self._pack.get(digest)
        except KeyError:
            return False
        return True

    def sync(self) -> None:
        """Return when everything that was written is on the disk."""
        self._syncer.sync()

    def close(self) -> None:
        """Sync and close; appending afterwards is a defect."""
        if not self.closed:
            self.closed = True
            self._syncer.close()
            os.close(self._file)
            self._pack.close()


class _Syncer:
    """A thread that syncs files after they were written to; many writes share one sync."""

    def __init__(self, files: Iterable[int]) -> None:
        self._files = tuple(files)
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
            self._thread.start()
        self._dirty.set()

    def _run(self) -> None:
        while True:
            self._dirty.wait()
            if self._ending.is_set():
                return
            try:
                self.sync()
            except OSError as exc:
                log.warning("the journal cannot be synced: %s", exc)
            self._ending.wait(SYNC_PAUSE_S)

    def sync(self) -> None:
        with self._lock:
            self._dirty.clear()
            for file in self._files:
                os.fdatasync(file)

    def close(self) -> None:
        self._ending.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self.sync()


def _set_aside_other_versions(folder: Path) -> None:
    """Keep a journal of an older version under another name, and refuse one of a newer version rather than write into it."""
    path = folder / NAME
    if not path.is_file():
        return
    try:
        with path.open("rb") as stream:
            version = json.loads(stream.readline(LINE_MAX)).get("v")
    except (OSError, ValueError, AttributeError):
        return  # what it is instead, its opening says
    if isinstance(version, int) and version > JOURNAL_VERSION:
        raise UsageError(
            f"the journal of {folder.name} was written by a newer version",
            hint="update rlm-sandbox, or use another name",
        )
    if version != JOURNAL_VERSION:
        path.replace(folder / f"journal-v{version}.jsonl")


def read(lines: Iterable[bytes], *, torn: bool = False) -> Iterator[tuple[AnyRecord, str]]:
    """Yield ``(record, digest of its line)`` of a journal, checking version, chain and shape.

    ``torn=True`` ends at an incomplete last line (a journal that is being written) instead of refusing it.

    Raises:
        BundleError: a line is not what it must be; the message says which.
    """
    last = GENESIS
    for number, line in enumerate(lines):
        if torn and not line.endswith(b"\n"):
            return
        record = _parse(line, number)
        if record.prev != last or record.seq != number:
            raise BundleError(
                f"the journal is broken at line {number + 1}: it does not follow the line before it",
                hint="the file was changed after it was written; get it again from whoever made it",
            )
        last = hashlib.sha256(line).hexdigest()
        yield record, last


def _parse(line: bytes, number: int) -> AnyRecord:
    if len(line) > LINE_MAX or not line.endswith(b"\n"):
        raise _damaged(number, "it is cut off or too long")
    try:
        form: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise _damaged(number, "it is not JSON") from None
    version = form.get("v") if isinstance(form, dict) else None
    if isinstance(version, int) and version > JOURNAL_VERSION:
        raise BundleError(
            f"the journal is of version {version}, this program reads up to {JOURNAL_VERSION}",
            hint="update rlm-sandbox",
        )
    if version != JOURNAL_VERSION:
        raise BundleError(
            f"the journal is of version {version!r:.20}, this program reads {JOURNAL_VERSION}",
            hint="read it with the version of rlm-sandbox that wrote it",
        )
    try:
        return adapter().validate_json(line)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise _damaged(number, f"{where}: {first['msg']}") from None
    except RecursionError:
        raise _damaged(number, "it is nested too deeply") from None


def _damaged(number: int, why: str) -> BundleError:
    return BundleError(
        f"the journal is broken at line {number + 1}: {why}",
        hint="the file is damaged or was changed; get it again from whoever made it",
    )


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a journal file, each with its newline; a line over the limit comes cut."""
    with path.open("rb") as stream:
        while line := stream.readline(LINE_MAX + 1):
            yield line
