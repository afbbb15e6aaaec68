"""A directory as an input: copied file by file into a stage, or, if asked for, mounted as it is.

A stage holds ``tree/`` (only what was admitted) and ``index.jsonl`` (one line for each file, in the order of the context). It is the stronger
way: what is not copied is not in the container. A mounted directory shows everything in it; only the index is filtered.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm_sandbox.container import admission, staging
from rlm_sandbox.container.admission import GUEST_INPUT, PREVIEW_FILES, Admitted, Identity, shown
from rlm_sandbox.container.languages import Languages
from rlm_sandbox.container.pace import Pace
from rlm_sandbox.container.profile import Mount
from rlm_sandbox.container.reading import Counter, Facts
from rlm_sandbox.container.selection import Selection
from rlm_sandbox.container.tree import Skipped, Walker
from rlm_sandbox.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.container.admission import Progress
    from rlm_sandbox.container.tree import Found

TOTAL_MAX = 64 * 1024**3
"""Bytes of one staged directory. Larger inputs are mounted as they are (--bind), or are one file."""

SPACE_EVERY = 256 * 1024 * 1024
"""Bytes copied between two looks at the free disk: a quarter of what is left free."""

WHOLE_MAX = 4 * 1024 * 1024
"""Bytes read in one piece: the default limit of a file. Larger ones are copied by the kernel and then counted."""

MOUNTED_ONLY = {"not readable by everyone", "name not UTF-8"}
"""Why a file is left out of a directory that is mounted, and would not be of one that is staged."""

TREE = "tree"
INDEX = "index.jsonl"


@dataclass(frozen=True)
class Options:
    """What the caller chose. See :func:`rlm_sandbox.container.admission.admit`."""

    glob: str | None
    exclude: str | None
    max_file_bytes: int
    prefix_len: int
    progress: Progress | None


@dataclass
class Context:
    """The text that the guest will make of the files: each behind its header, in order. Kept in step with the guest's own."""

    prefix_len: int
    chars: int = 0
    size: int = 0
    newlines: int = 0
    files: int = 0
    binary: int = 0
    preview: list[dict[str, Any]] = field(default_factory=list)
    languages: Languages = field(default_factory=Languages)
    _prefix: list[str] = field(default_factory=list)
    _room: int = 0

    def __post_init__(self) -> None:
        self._room = self.prefix_len

    def add(self, path: str, size: int, counter: Counter) -> str:
        """Add a file and return its line of the index."""
        lead = "" if self.files == 0 else "\n\n"
        header = f"{lead}======== FILE: {path} ({counter.chars} chars) ========\n"
        for text in (header, counter.prefix):
            if self._room > 0:
                self._prefix.append(text[: self._room])
                self._room -= len(self._prefix[-1])
        self.files += 1
        self.chars += len(header) + counter.chars
        self.size += len(header.encode()) + counter.utf8_bytes
        self.newlines += header.count("\n") + counter.newlines
        self.binary += counter.binary
        self.languages.add(path, size)
        if len(self.preview) < PREVIEW_FILES:
            self.preview.append({"path": path, "chars": counter.chars, "bytes": size})
        row: dict[str, Any] = {"path": path, "bytes": size, "chars": counter.chars}
        if counter.encoding:
            row |= {"encoding": counter.encoding, "utf8_bytes": counter.utf8_bytes}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def facts(self) -> Facts:
        """Return the totals."""
        return Facts("".join(self._prefix), self.chars, self.newlines, binary=False)


def stage(fd: int, path: Path, stage_dir: Path, options: Options) -> Admitted:
    """Copy what is admitted and return it. On failure nothing of the stage remains."""
    selection = Selection(options.glob, options.exclude)
    context = Context(options.prefix_len)
    pace = Pace(options.progress)
    staging.make_stage(stage_dir)
    try:
        expected = survey(fd, selection, options, pace, stage_dir)
        _refuse_nothing(expected.files, expected.skipped, path)
        tell = _teller(pace, "staging", context, expected)
        walker = Walker(fd, selection, options.max_file_bytes, looked=tell)
        _copy_all(walker, context, stage_dir)
        tell(last=True)
        _refuse_nothing(context.files, walker.skipped, path)
        identity = Identity.of((stage_dir / TREE).stat())
    except OSError as exc:
        staging.drop(stage_dir)
        raise InputError(f"staging {shown(path)} failed: {exc.strerror}", hint="see the free disk space") from exc
    except BaseException:
        staging.drop(stage_dir)
        raise
    os.close(fd)
    return _admitted(
        path, context, walker.skipped, options, mounts=(Mount(str(stage_dir), GUEST_INPUT),), identity=identity,
        staged=True, stage=stage_dir,
    )  # fmt: skip


def bind(fd: int, info: os.stat_result, path: Path, stage_dir: Path, options: Options) -> Admitted:
    """Mount the directory itself, and index what is selected and readable by everyone. Only the index is staged."""
    selection = Selection(options.glob, options.exclude)
    context = Context(options.prefix_len)
    pace = Pace(options.progress)
    staging.make_stage(stage_dir)
    try:
        expected = survey(fd, selection, options, pace, None)
        _refuse_nothing(expected.files, expected.skipped, path)
        tell = _teller(pace, "reading", context, expected)
        walker = Walker(fd, selection, options.max_file_bytes, looked=tell)
        _index_all(walker, context, stage_dir / INDEX)
        tell(last=True)
        _refuse_nothing(context.files, walker.skipped, path)
    except OSError as exc:
        staging.drop(stage_dir)
        raise InputError(f"reading {shown(path)} failed: {exc.strerror}") from exc
    except BaseException:
        staging.drop(stage_dir)
        raise
    mounts = (Mount(str(path), f"{GUEST_INPUT}/{TREE}"), Mount(str(stage_dir / INDEX), f"{GUEST_INPUT}/{INDEX}"))
    admitted = _admitted(
        path, context, walker.skipped, options, mounts=mounts, identity=Identity.of(info), staged=False, stage=stage_dir
    )
    admitted.path, admitted.fd = path, fd
    admitted.warnings.append("the directory is mounted as it is: code in the session can read every file in it")
    return admitted


@dataclass
class Survey:
    """What a directory holds, before anything is read: files that match and their bytes, ``copied`` of which surely take room on the disk."""

    files: int = 0
    size: int = 0
    copied: int = 0
    skipped: Skipped = field(default_factory=Skipped)


def survey(fd: int, selection: Selection, options: Options, pace: Pace, stage_dir: Path | None) -> Survey:
    """Count what matches, and refuse what is too much while nothing was copied yet; without a stage nothing will be."""
    total = Survey()

    def told() -> str:
        return f"looking: {walker.entries} entries, {total.files} files that match, {total.size >> 20} MiB"

    walker = Walker(fd, selection, options.max_file_bytes, survey=True, looked=lambda: pace(told))
    total.skipped = walker.skipped
    room = None if stage_dir is None else staging.room(stage_dir)
    for found in walker:
        total.files += 1
        total.size += found.info.st_size
        if found.info.st_size <= WHOLE_MAX:  # a larger one may share its blocks with the original
            total.copied += found.info.st_size
        if stage_dir is not None and total.size > TOTAL_MAX:
            raise _too_much()
        if room is not None and total.copied > room:
            raise InputError(
                f"the files that match need more than the {room >> 20} MiB that the disk has for a copy",
                hint=staging.NO_ROOM_HINT,
            )
    return total


def _too_much() -> InputError:
    return InputError(
        f"more than {TOTAL_MAX >> 30} GiB match", hint="narrow it with --glob, or mount it as it is with --bind"
    )


def _teller(pace: Pace, work: str, context: Context, expected: Survey) -> Callable[..., None]:
    def line() -> str:
        return f"{work}: {context.files} of {expected.files} files, {context.size >> 20} of {expected.size >> 20} MiB"

    return functools.partial(pace, line)


def _copy_all(walker: Walker, context: Context, stage_dir: Path) -> None:
    staging.check_space(stage_dir, 0)
    unchecked = copied = 0
    target = Target(stage_dir / TREE)
    with (stage_dir / INDEX).open("x", encoding="utf-8") as index:
        for found in walker:
            try:
                size, counter = target.write(found, context.prefix_len)
            finally:
                os.close(found.fd)
            index.write(context.add(found.path, size, counter))
            unchecked += size
            copied += size
            if copied > TOTAL_MAX:  # it grew since the survey
                raise _too_much()
            if unchecked > SPACE_EVERY:
                staging.check_space(stage_dir, 0)
                unchecked = 0
    (stage_dir / INDEX).chmod(staging.STAGED_FILE)


def _index_all(walker: Walker, context: Context, index_path: Path) -> None:
    with index_path.open("x", encoding="utf-8") as index:
        for found in walker:
            try:
                if not found.public or found.renamed:
                    walker.skipped.note(
                        "not readable by everyone" if not found.public else "name not UTF-8", found.path
                    )
                    continue
                counter = staging.count(found.fd, context.prefix_len)
            finally:
                os.close(found.fd)
            index.write(context.add(found.path, found.info.st_size, counter))
    index_path.chmod(staging.STAGED_FILE)


class Target:
    """The copy's tree. It is ours and nobody else's, so plain paths are safe in it; folders are made as they are needed."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        root.chmod(staging.STAGED_FOLDER)
        self._root = root
        self._made = {""}

    def write(self, found: Found, prefix_len: int) -> tuple[int, Counter]:
        """Copy one file and return its size and what was counted in it."""
        folder, _, _ = found.path.rpartition("/")
        if folder not in self._made:
            self._make(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        out = os.open(self._root / found.path, flags, 0o400)
        try:
            size, counter = self._fill(found, out, prefix_len)
            os.fchmod(out, staging.STAGED_FILE)
        finally:
            os.close(out)
        return size, counter

    def _fill(self, found: Found, out: int, prefix_len: int) -> tuple[int, Counter]:
        if found.info.st_size > WHOLE_MAX:
            size = staging.copy(found.fd, out, found.info.st_size)
            return size, staging.count(out, prefix_len)
        data = _read(found.fd, found.info.st_size)
        counter = Counter(prefix_len)
        counter.feed(data, final=True)
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]
        return len(data), counter

    def _make(self, folder: str) -> None:
        parent, _, _ = folder.rpartition("/")
        if parent not in self._made:
            self._make(parent)
        path = self._root / folder
        path.mkdir()
        path.chmod(staging.STAGED_FOLDER)
        self._made.add(folder)


def _read(fd: int, size: int) -> bytes:
    """Read up to ``size`` bytes: a file that grows meanwhile is as long as when it was admitted."""
    parts = []
    left = size
    while left and (data := os.read(fd, left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def _refuse_nothing(files: int, skipped: Skipped, path: Path) -> None:
    if files:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.counts.items()))
    if not reasons:
        raise InputError(f"{shown(path)} is empty", hint="pass a directory with files")
    hint = (
        "leave out --bind: a staged file need not be readable by everyone, nor its name be UTF-8"
        if MOUNTED_ONLY & skipped.counts.keys()
        else "check --glob and --exclude"
    )
    raise InputError(f"no files matched under {shown(path)}: {reasons}", hint=hint)


_WORTH_A_WARNING = {
    "of the kernel": "file systems of the kernel",
    "ignored": "caches, dependencies and build products",
    "symlink": "symbolic links, which are not followed",
    "special": "devices, sockets and pipes",
    "vanished": "gone before they were read",
    "too large": "larger than RLM_MAX_PER_FILE_BYTES",
    "unreadable": "not readable",
    "not readable by everyone": "not readable by everyone, as a mounted file must be",
    "name not UTF-8": "names that are not UTF-8",
    "secret": "usual places of keys",
}


def _admitted(path: Path, context: Context, skipped: Skipped, options: Options, **kind: Any) -> Admitted:
    warnings = []
    for reason, why in _WORTH_A_WARNING.items():
        if count := skipped.counts.get(reason):
            names = ", ".join(shown(name) for name in skipped.examples[reason])
            what = f"{why} ({options.max_file_bytes})" if reason == "too large" else why
            warnings.append(
                f"{count} left out, {what}: {names}{', ...' if count > len(skipped.examples[reason]) else ''}"
            )
    if context.binary:
        warnings.append(f"{context.binary} files look binary: bytes that are not UTF-8 read as U+FFFD")
    name = shown(path.name) or "/"
    return admission.Admitted(
        kind="directory",
        display=shown(path),
        config={
            "kind": "directory",
            "path": f"{GUEST_INPUT}/{TREE}",
            "index": f"{GUEST_INPUT}/{INDEX}",
            "name": name,
        },
        facts=context.facts(),
        total_bytes=context.size,
        files_preview=context.preview,
        languages=context.languages.summary(),
        file_count=context.files,
        skipped=dict(skipped.counts),
        warnings=warnings,
        **kind,
    )
