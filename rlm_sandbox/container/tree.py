"""Walking a directory by descriptors: every step is an ``openat`` without following, so no path is trusted twice.

Somebody may rename and replace things in the directory while it is walked. What is opened is then still a regular file that was
reached without a symlink; anything else is skipped and counted.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm_sandbox.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_sandbox.container.selection import Selection

FILES_MAX = 200_000
"""Files of one input: the guest holds about 100 bytes for each, and a stage costs an inode."""

ENTRIES_MAX = 2_000_000
"""Entries looked at, admitted or not: minutes of walking, and half a gigabyte if they all lay in one folder."""

DEPTH_MAX = 64
"""Nesting of folders. Each open level holds a descriptor."""

NAME_MAX = 255
"""Bytes of a name on every common file system."""

EXAMPLES = 3

KERNEL_FILES = {
    "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "pstore", "configfs", "fusectl", "binfmt_misc",
    "efivarfs", "selinuxfs", "mqueue", "devpts",
}  # fmt: skip
"""File systems whose files are the kernel's state: of no length until they are read, and with other processes' environments among them."""

FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Skipped:
    """What was left out, by reason, with a few names for a message."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, path: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(path)


@dataclass(frozen=True)
class Found:
    """A regular file. ``path`` is valid Unicode; ``public`` tells that any user may reach and read it. Close ``fd``; -1 in a survey."""

    path: str
    fd: int
    info: os.stat_result
    public: bool
    renamed: bool


@dataclass
class _Level:
    fd: int
    prefix: str
    names: Iterator[str]
    public: bool
    renamed: bool
    taken: set[str]
    dev: int


class Walker:
    """Yields the admitted files of a directory in the order of their paths' parts, as rlm-skill does. The root stays open.

    A ``survey`` opens no file: it tells how many there are and how large, before anything is read or copied. ``looked`` is called for every
    entry, admitted or not, since a tree of which nothing matches takes as long.
    """

    def __init__(
        self,
        root: int,
        selection: Selection,
        max_file_bytes: int,
        *,
        survey: bool = False,
        looked: Callable[[], None] | None = None,
    ) -> None:
        self._root = root
        self._selection = selection
        self._max = max_file_bytes
        self._survey = survey
        self._looked = looked
        self.entries = 0
        self.files = 0
        self.skipped = Skipped()

    def __iter__(self) -> Iterator[Found]:
        info = os.fstat(self._root)
        if kind := kernel_files(info.st_dev):
            raise InputError(
                f"the directory is of the kernel's file system {kind}: its files have no content to copy",
                hint="write what you need into files of your own, and pass those",
            )
        stack = [self._level(os.dup(self._root), "", info, public=_public_folder(info), renamed=False)]
        try:
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    os.close(stack.pop().fd)
                    continue
                found = self._look(level, name)
                if isinstance(found, _Level):
                    stack.append(found)
                    if len(stack) > DEPTH_MAX:
                        raise InputError(
                            f"the directory nests deeper than {DEPTH_MAX}: {level.prefix[:80]!r}...",
                            hint="start at a deeper folder, or use --exclude",
                        )
                elif found is not None:
                    self.files += 1
                    if self.files > FILES_MAX:
                        if found.fd >= 0:
                            os.close(found.fd)
                        raise InputError(
                            f"more than {FILES_MAX} files match",
                            hint="narrow it with --glob, --exclude or a deeper folder",
                        )
                    yield found
        finally:
            for level in stack:
                os.close(level.fd)

    def _level(self, fd: int, prefix: str, info: os.stat_result, *, public: bool, renamed: bool) -> _Level:
        try:
            names = sorted(entry.name for entry in self._counted(fd))
        except BaseException:
            os.close(fd)
            raise
        return _Level(fd, prefix, iter(names), public, renamed, set(), info.st_dev)

    def _counted(self, fd: int) -> Iterator[os.DirEntry[str]]:
        with os.scandir(fd) as entries:
            for entry in entries:
                self.entries += 1
                if self.entries > ENTRIES_MAX:
                    raise InputError(
                        f"the directory holds more than {ENTRIES_MAX} entries",
                        hint="start at a deeper folder, or use --exclude",
                    )
                yield entry

    def _look(self, level: _Level, name: str) -> Found | _Level | None:
        clean = clean_name(name, level.taken)
        path = f"{level.prefix}{clean}"
        if self._looked is not None:
            self._looked()
        try:
            info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            mode = info.st_mode
            if stat.S_ISDIR(mode):
                return self._folder(level, name, clean, path)
            if stat.S_ISREG(mode):
                return self._file(level, name, clean, path, info)
            self.skipped.note("symlink" if stat.S_ISLNK(mode) else "special", path)
        except OSError as exc:
            self.skipped.note(_reason(exc), path)
        return None

    def _folder(self, level: _Level, name: str, clean: str, path: str) -> _Level | None:
        if reason := self._selection.refused_folder(path):
            self.skipped.note(reason, f"{path}/")
            return None
        fd = os.open(name, FOLDER_FLAGS, dir_fd=level.fd)
        info = os.fstat(fd)
        if info.st_dev != level.dev and kernel_files(info.st_dev):
            os.close(fd)
            self.skipped.note("of the kernel", f"{path}/")
            return None
        public = level.public and _public_folder(info)
        return self._level(fd, f"{path}/", info, public=public, renamed=level.renamed or clean != name)

    def _file(self, level: _Level, name: str, clean: str, path: str, seen: os.stat_result) -> Found | None:
        if reason := self._selection.refused(path):
            self.skipped.note(reason, path)
            return None
        fd, info = -1, seen
        if not self._survey:
            fd = os.open(name, FILE_FLAGS, dir_fd=level.fd)
            info = os.fstat(fd)
        reason = "" if stat.S_ISREG(info.st_mode) else "special"
        if info.st_size > self._max:
            reason = reason or "too large"
        if reason:
            if fd >= 0:
                os.close(fd)
            self.skipped.note(reason, path)
            return None
        public = level.public and bool(info.st_mode & stat.S_IROTH)
        return Found(path, fd, info, public, level.renamed or clean != name)


def clean_name(name: str, taken: set[str]) -> str:
    r"""Return a name as valid Unicode: bytes that are not UTF-8 become ``\xNN``; made unique among ``taken`` where that collides."""
    raw = os.fsencode(name)
    clean = raw.decode("utf-8", "backslashreplace")
    if clean in taken or len(clean.encode()) > NAME_MAX:
        digest = hashlib.sha256(raw).hexdigest()[:12]
        clean = f"{clean.encode()[: NAME_MAX - 16].decode('utf-8', 'ignore')}~{digest}"
    taken.add(clean)
    return clean


def kernel_files(dev: int) -> str | None:
    """Return the type of the file system of a device number if its files are the kernel's state (see :data:`KERNEL_FILES`)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:  # noqa: PTH123 - one short file
            rows = [line.split() for line in table]
    except OSError:
        return None  # not Linux: there is no such file system, or none that can be told
    number = f"{os.major(dev)}:{os.minor(dev)}"
    for row in rows:
        if row[2] == number and (kind := row[row.index("-") + 1]) in KERNEL_FILES:
            return kind
    return None


def _public_folder(info: os.stat_result) -> bool:
    wanted = stat.S_IROTH | stat.S_IXOTH
    return info.st_mode & wanted == wanted


def _reason(error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "unreadable"
    if error.errno == errno.ELOOP:
        return "symlink"
    return "vanished" if error.errno == errno.ENOENT else "unreadable"
