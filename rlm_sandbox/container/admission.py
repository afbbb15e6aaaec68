"""From a path that a user named to an input that a container may read: admitted once, by descriptor.

A path can change its meaning between two looks, so it is resolved once, opened once (``O_NOFOLLOW``, never blocking on a FIFO),
and everything afterwards goes through that descriptor: the type, the size, the copy. Only a bind mount needs the path again, because
the kernel refuses to mount a descriptor of another mount namespace; there the guest reports the device and inode that it sees, and
:mod:`rlm_sandbox.container.selfcheck` compares them with the descriptor's before any code runs.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from rlm_sandbox.container.profile import Mount
from rlm_sandbox.container.reading import Facts, peek, read_facts
from rlm_sandbox.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Progress = Callable[[str], None]

Mode = Literal["auto", "snapshot", "bind"]
MODES = ("auto", "snapshot", "bind")

EXACT_MAX = 16 * 1024 * 1024
"""Bytes of a mounted file whose characters and lines are counted at the start: 20 ms. Beyond, the start would grow with
the input."""

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Of a directory: rlm-skill's ``RLM_MAX_PER_FILE_BYTES``."""

PREFIX_LEN = 800
"""Characters of the context shown at the start: rlm-skill's ``RLM_CONTEXT_PREFIX_LEN``."""

PREVIEW_FILES = 20
"""Files listed at the start, as rlm-skill does."""

GUEST_INPUT = "/input"
_NAME_MAX = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Identity:
    """What tells one state of a file from another."""

    dev: int
    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> Identity:
        """Take it from a stat."""
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


@dataclass
class Admitted:
    """An input that may be mounted. Sizes in bytes, ``total_chars`` and ``line_count`` None where counting would not be cheap.

    ``config`` is the ``input`` object of the kernel's settings; ``skipped`` counts, by reason, what a directory held and the
    container does not get; ``languages`` sums up a directory's files by kind; ``identity`` is that of the mounted file or folder. Hold it as long as the session lives.
    """

    kind: Literal["file", "directory"]
    display: str
    mounts: tuple[Mount, ...]
    config: dict[str, Any]
    identity: Identity
    facts: Facts
    total_bytes: int
    files_preview: list[dict[str, Any]]
    languages: list[dict[str, Any]] = field(default_factory=list)
    file_count: int = 1
    staged: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None
    stage: Path | None = None
    fd: int = -1
    unproven: bool = False
    """The engine reads the input on another machine, and not all of its bytes were compared with those here."""

    @property
    def total_chars(self) -> int | None:
        """Characters of the context, if known."""
        return self.facts.chars

    @property
    def line_count(self) -> int | None:
        """Lines as rlm-skill counts them (newlines plus one), if known."""
        return None if self.facts.newlines is None else self.facts.newlines + 1

    @property
    def prefix(self) -> str:
        """The beginning of the context: raw text of an untrusted source."""
        return self.facts.prefix

    def changed(self) -> str | None:
        """Say how a mounted input differs from what was admitted, or return ``None``. A staged one cannot change."""
        if self.staged or self.fd < 0 or self.path is None:
            return None
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.identity.size, self.identity.mtime_ns):
            return f"the input changed since the session started ({self.identity.size} bytes then, {now.st_size} now)"
        try:
            named = self.path.stat()
        except OSError:
            return "the input changed since the session started: its path is gone; the session reads on what was there"
        if (named.st_dev, named.st_ino) != (self.identity.dev, self.identity.ino):
            return (
                "the input changed since the session started: another file has its path; the session reads on the first"
            )
        return None

    def close(self) -> None:
        """Give up the descriptor and remove what was staged. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.stage is not None:
            from rlm_sandbox.container.staging import drop  # noqa: PLC0415 - most inputs are not staged

            drop(self.stage)
            self.stage = None


def admit(
    path: str | os.PathLike[str],
    *,
    glob: str | None = None,
    exclude: str | None = None,
    mode: str = "auto",
    stage_dir: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
    prefix_len: int = PREFIX_LEN,
    progress: Progress | None = None,
) -> Admitted:
    """Admit a file or directory; blocks while it stages. ``stage_dir`` is made only if something is staged.

    ``progress`` is told how far it is, and may raise to give it up.

    Raises:
        InputError: missing, unreadable, empty, of a special type, nothing matches, or over a limit.
        UsageError: the options make no sense for this input.
    """
    if mode not in MODES:
        raise UsageError(f"no such mode: {mode}", hint=f"one of: {', '.join(MODES)}")
    resolved = resolve(path)
    fd, info = open_admitted(resolved)
    try:
        if stat.S_ISDIR(info.st_mode):
            from rlm_sandbox.container import directory  # noqa: PLC0415 - most inputs are files

            options = directory.Options(glob, exclude, max_file_bytes, prefix_len, progress)
            if mode == "bind":
                return directory.bind(fd, info, resolved, stage_dir, options)
            return directory.stage(fd, resolved, stage_dir, options)
        _check_file(info, resolved, mode, excluding=exclude)
        if glob:
            return _all_the_same(_file(fd, info, resolved, mode, stage_dir, prefix_len, progress), glob)
        return _file(fd, info, resolved, mode, stage_dir, prefix_len, progress)
    except BaseException:
        os.close(fd)
        raise


def _file(
    fd: int,
    info: os.stat_result,
    path: Path,
    mode: str,
    stage_dir: Path,
    prefix_len: int,
    progress: Progress | None,
) -> Admitted:
    if mode == "snapshot" or not (_world_readable(info) and _mountable(path)):
        from rlm_sandbox.container import staging  # noqa: PLC0415 - most inputs are mounted

        return staging.snapshot(fd, info, path, stage_dir, prefix_len, progress)
    return _mounted(fd, info, path, prefix_len)


def _all_the_same(admitted: Admitted, glob: str) -> Admitted:
    """Take a file although a glob was named: rlm-skill does, and its scripts name one for whatever comes."""
    admitted.warnings.append(
        f"--glob {shown(glob[:80])} selects files of a directory; the input is a file and taken as it is"
    )
    return admitted


def _check_file(info: os.stat_result, path: Path, mode: str, *, excluding: str | None) -> None:
    if excluding:
        raise UsageError("--exclude leaves files of a directory out", hint=f"{shown(path)} is a file")
    if info.st_size == 0:
        raise InputError(f"{shown(path)} is empty", hint="pass a file with content")
    if mode == "bind" and not _world_readable(info):
        raise InputError(f"{shown(path)} is not readable by everyone, so it cannot be mounted", hint="leave out --bind")


def resolve(path: str | os.PathLike[str]) -> Path:
    """Follow the symlinks that the user named, once. Raises :class:`InputError` when nothing is there."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as exc:
        raise _refusal(exc, Path(path)) from exc


def open_admitted(path: Path) -> tuple[int, os.stat_result]:
    """Open a resolved path without following or blocking, and refuse what is neither file nor directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as exc:
        raise _refusal(exc, path) from exc
    info = os.fstat(fd)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        os.close(fd)
        raise InputError(f"{shown(path)} is {special_name(info.st_mode)}", hint="pass a regular file or a directory")
    return fd, info


def _refusal(error: Exception, path: Path) -> InputError:
    name = shown(path)
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"no such file or directory: {name}", hint="check --input; a relative path starts at the current folder"
        )
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read {name}", hint="chmod it, or run as a user who may read it")
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return InputError(f"cannot open {name}: {getattr(error, 'strerror', None) or error}", hint="check --input")
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        return InputError(f"cannot open {name}: {getattr(error, 'strerror', None) or error}", hint="check --input")
    return InputError(f"{name} is {special_name(mode)}", hint="pass a regular file or a directory")


def special_name(mode: int) -> str:
    """Name a type of file that is not admitted."""
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "not a regular file"


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as valid Unicode without control characters: names on disk may be any bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def guest_name(name: str) -> str:
    """Return a harmless name for the container's side; ``/input/<name>`` says no more than it must."""
    clean = _UNSAFE.sub("_", os.fsencode(name).decode("utf-8", "replace"))[-_NAME_MAX:].lstrip(".-_")
    return clean or "input"


def host_path(mounts: Iterable[Mount], guest: str) -> Path:
    """Return where a path of the container lies on this host."""
    path = PurePosixPath(guest)
    for mount in sorted(mounts, key=lambda each: -len(each.target)):
        if path.is_relative_to(mount.target):
            return Path(mount.source) / path.relative_to(mount.target)
    raise FileNotFoundError(guest)


def _world_readable(info: os.stat_result) -> bool:
    return bool(info.st_mode & stat.S_IROTH)


def _mountable(path: Path) -> bool:
    """The engine takes paths as JSON text, so a name that is not UTF-8 cannot be named to it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _mounted(fd: int, info: os.stat_result, path: Path, prefix_len: int) -> Admitted:
    """Admit a file as it is, mounted read-only: its size does not matter for the start."""
    name = guest_name(path.name)
    target = f"{GUEST_INPUT}/{name}"
    facts = read_facts(fd, prefix_len) if info.st_size <= EXACT_MAX else peek(fd, prefix_len)
    size = os.fstat(fd).st_size
    return Admitted(
        kind="file",
        display=shown(path),
        mounts=(Mount(str(path), target),),
        config={"kind": "file", "path": target, "index": None, "name": shown(path.name)},
        identity=Identity.of(info),
        facts=facts,
        total_bytes=size,
        files_preview=[{"path": shown(path), "chars": facts.chars, "bytes": size}],
        warnings=facts.warnings(),
        path=path,
        fd=fd,
    )
