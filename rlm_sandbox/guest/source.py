"""Bytes of an input, by position, and nothing more.

Every read is a ``pread`` on a descriptor: a mapped file that shrinks is SIGBUS, which nothing in Python catches, while a
short read is a fact that can be reported. A source promises the size it saw when it was opened. Bytes that went
missing raise ``InputChanged``; bytes that were added or rewritten are noted in ``Changes``, once each, for the session
to pass on.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

from rlm_sandbox.guest.errors import InputChanged

if TYPE_CHECKING:
    from collections.abc import Callable

# Descriptors a directory keeps open. The container's own limit is at least 1,024; most files are read once, in order.
OPEN_FILES = 64
# Reasons of a refused open that say nothing about the file: no descriptor left, no memory.
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Distinct change notes kept: enough to see a pattern, small enough for one result.
NOTES = 20


class Changes:
    """What was noticed about an input that did not stay as it was. Each fact is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._new: list[str] = []

    def note(self, message: str) -> None:
        """Remember ``message`` unless it was noted before."""
        if message not in self._told and len(self._told) < NOTES:
            self._told.add(message)
            self._new.append(message)

    def take(self) -> list[str]:
        """Return the notes not taken yet."""
        new, self._new = self._new, []
        return new


class Source(Protocol):
    """Bytes by position."""

    @property
    def size(self) -> int:
        """The number of bytes, fixed when the source was opened."""

    def read(self, start: int, stop: int) -> bytes:
        """Return exactly the bytes ``[start, stop)``, both within ``[0, size]``, or raise ``InputChanged``."""

    def check(self) -> None:
        """Look for a change without reading data, and note it."""

    def after_fork(self) -> None:
        """Make the source usable in a forked child, whatever another thread held at the time."""


class BytesSource:
    """A source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, start: int, stop: int) -> bytes:
        """Return a copy of the range."""
        return self._data[start:stop]

    def check(self) -> None:
        """Memory does not change."""

    def after_fork(self) -> None:
        """Nothing is held."""


Identity = tuple[int, int, int, int]


def identity(status: os.stat_result) -> Identity:
    """Return what tells one state of a file from another: device, inode, size, modification time in ns."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileSource:
    """One regular file, remembered as it was when opened."""

    def __init__(self, path: str, changes: Changes, name: str | None = None, seen: Identity | None = None) -> None:
        self.path = path
        self.name = name or os.path.basename(path)  # noqa: PTH119 - paths are plain strings in the guest
        self._changes = changes
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = identity(os.fstat(self._fd))
        if seen is not None and seen != self.identity:
            self._note(seen, self.identity)
        self.size = self.identity[2]

    def read(self, start: int, stop: int) -> bytes:
        """Return the range; a file that lost bytes raises ``InputChanged``, other changes are noted."""
        wanted = stop - start
        data = os.pread(self._fd, wanted, start)
        if len(data) < wanted:
            data = self._read_on(data, start, wanted)
        now = identity(os.fstat(self._fd))
        if now != self.identity:
            self._note(self.identity, now)
        return data

    def _read_on(self, data: bytes, start: int, wanted: int) -> bytes:
        """Linux returns at most 2 GiB per read, and a short read is not yet the end."""
        parts = [data]
        have = len(data)
        while have < wanted and (more := os.pread(self._fd, wanted - have, start + have)):
            parts.append(more)
            have += len(more)
        if have < wanted:
            now = identity(os.fstat(self._fd))
            self._note(self.identity, now)
            raise InputChanged(
                f"the input changed while the session ran: {self.name} had {self.size} bytes and now has {now[2]}"
            )
        return b"".join(parts)

    def check(self) -> None:
        """Compare both the open file and whatever now stands at its path with what was opened."""
        try:
            now = identity(os.stat(self.path))  # noqa: PTH116 - as above
        except OSError:
            self._changes.note(f"the input changed while the session ran: {self.name} was removed or replaced")
            return
        if now != self.identity:
            self._note(self.identity, now)

    def _note(self, before: Identity, now: Identity) -> None:
        if now[:2] != before[:2]:
            what = "was replaced"
        elif now[2] < before[2]:
            what = "shrank"
        elif now[2] > before[2]:
            what = "grew"
        else:
            what = "was written to"
        self._changes.note(f"the input changed while the session ran: {self.name} {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path, for a process pool: a copy that held this descriptor would close it when it goes."""
        return FileSource, (self.path, self._changes, self.name, self.identity)

    def after_fork(self) -> None:
        """``pread`` shares no position, so the descriptor can be used as it is."""

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class ConcatSource:
    """Files of a directory one after the other, each behind its header, none opened before it is read.

    ``starts[i]`` is where file ``i``'s own bytes begin; its header lies in front of it. All tables are arrays of
    integers, so that 100,000 files cost a few megabytes. ``adapt`` may show a file otherwise than it lies on disk; sizes
    are those of what is shown.
    """

    def __init__(
        self,
        root: str,
        paths: list[str],
        sizes: array[int],
        headers: Headers,
        changes: Changes,
        adapt: Callable[[int, FileSource], Source] = lambda _, source: source,
    ) -> None:
        self._root = root
        self._paths = paths
        self._sizes = sizes
        self._headers = headers
        self._changes = changes
        self._lock = threading.Lock()
        self._adapt = adapt
        self._open: OrderedDict[int, Source] = OrderedDict()
        self._seen: dict[int, Identity] = {}
        self.starts = array("q")
        position = 0
        for i, size in enumerate(sizes):
            position += len(headers.header(i).encode("utf-8", "replace"))
            self.starts.append(position)
            position += size
        self.size = position

    def read(self, start: int, stop: int) -> bytes:
        """Return the range, joined from as many headers and files as it spans."""
        parts: list[bytes] = []
        i = bisect_right(self.starts, start) - 1  # -1: inside the first header
        while start < stop:
            if i >= 0 and start < (end := self.starts[i] + self._sizes[i]):
                upto = min(stop, end)
                parts.append(self.read_file(i, start - self.starts[i], upto - self.starts[i]))
                start = upto
                continue
            i += 1
            header = self._headers.header(i).encode("utf-8", "replace")
            begin = self.starts[i] - len(header)
            parts.append(header[start - begin : stop - begin])
            start = min(stop, self.starts[i])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_file(self, i: int, start: int, stop: int) -> bytes:
        """Return a range of file ``i``. The lock keeps another thread from closing its descriptor meanwhile."""
        if start == stop:
            return b""
        with self._lock:
            return self._file(i).read(start, stop)

    def _file(self, i: int) -> Source:
        if i in self._open:
            self._open.move_to_end(i)
            return self._open[i]
        path = self._paths[i]
        try:
            source = FileSource(f"{self._root}/{path}", self._changes, name=path, seen=self._seen.get(i))
        except OSError as error:
            if error.errno in _NOT_THE_FILE:
                raise
            message = f"the input changed while the session ran: {path} cannot be opened any more"
            self._changes.note(message)
            raise InputChanged(message) from error
        shown = self._adapt(i, source)
        if i not in self._seen and shown.size != self._sizes[i]:
            self._changes.note(f"the input changed while the session ran: {path} is not as long as it was at the start")
        self._seen[i] = source.identity
        self._open[i] = shown
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)  # closes itself when nobody reads it any more
        return shown

    def raw(self, i: int) -> FileSource:
        """Return file ``i`` by itself, as it lies on disk."""
        return FileSource(f"{self._root}/{self._paths[i]}", self._changes, name=self._paths[i], seen=self._seen.get(i))

    def check(self) -> None:
        """Look at the files that are open; the others are looked at when they are read."""
        with self._lock:
            for source in self._open.values():
                source.check()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the lock and what is open; the copy opens files for itself."""
        return {**self.__dict__, "_lock": None, "_open": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def after_fork(self) -> None:
        """The lock may have been held by a thread that does not exist in the child."""
        self._lock = threading.Lock()


class Headers(Protocol):
    """What stands in front of each file."""

    def header(self, i: int) -> str:
        """Return the header of file ``i``."""


class SliceSource:
    """A range of another source, as a source of its own."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self._source = source
        self._start = start
        self.size = stop - start

    def read(self, start: int, stop: int) -> bytes:
        """Return the range from the source behind."""
        return self._source.read(self._start + start, self._start + stop)

    def check(self) -> None:
        """Ask the source behind."""
        self._source.check()

    def after_fork(self) -> None:
        """Tell the source behind."""
        self._source.after_fork()
