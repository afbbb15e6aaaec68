"""Private copies of inputs: what is staged cannot change under the session, and holds nothing that was not admitted.

A copy shares its blocks with the original where the file system can (``FICLONE``), else the kernel copies. The folder is the
session's own (0700 above it); the files are 0444, since the container's user is not the owner.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

from rlm_sandbox.container import admission
from rlm_sandbox.container.pace import Pace
from rlm_sandbox.container.profile import Mount
from rlm_sandbox.container.reading import Counter, Facts
from rlm_sandbox.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.container.admission import Admitted, Progress

FICLONE = 0x40049409
CHUNK = 4 * 1024 * 1024
FREE_MIN = 1024 * 1024 * 1024
"""Bytes of disk that staging leaves free: databases and logs of the host go on."""

STAGED_FILE = 0o444
STAGED_FOLDER = 0o755


def make_stage(stage_dir: Path) -> None:
    """Make the stage's folder, in place of what an earlier session of that name left. The engine's mount needs no permission on the way to it, the container's user on the folder itself."""
    if stage_dir.exists():
        drop(stage_dir)
    if not stage_dir.parent.exists():
        stage_dir.parent.mkdir(mode=0o700, parents=True)
    stage_dir.mkdir()
    stage_dir.chmod(STAGED_FOLDER)


def drop(stage_dir: Path) -> None:
    """Remove a stage and everything in it; one that is gone is fine."""
    shutil.rmtree(stage_dir, ignore_errors=True)


NO_ROOM_HINT = "free some space, choose another RLM_SESSION_DIR, narrow --glob, or mount it as it is with --bind"


def room(stage_dir: Path) -> int:
    """Return how many bytes a copy may have."""
    usage = os.statvfs(stage_dir)
    return max(0, usage.f_bavail * usage.f_frsize - FREE_MIN)


def check_space(stage_dir: Path, size: int) -> None:
    """Raise :class:`InputError` when a copy of ``size`` bytes does not fit."""
    left = room(stage_dir)
    if size > left or left == 0:
        raise InputError(
            f"staging needs {size >> 20} MiB and the disk has {left >> 20} MiB for it, with {FREE_MIN >> 20} MiB kept free",
            hint=NO_ROOM_HINT,
        )


def _nobody(done: int) -> None:
    del done


def copy(source: int, target: int, size: int, tell: Callable[[int], None] = _nobody) -> int:
    """Copy a file by descriptors and return the bytes copied: at most ``size``, since a growing file has no end. ``tell`` gets the bytes so far."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return _copy_range(source, target, size, tell)
    return os.fstat(target).st_size


_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def _copy_range(source: int, target: int, size: int, tell: Callable[[int], None] = _nobody) -> int:
    done = 0
    try:
        while done < size:
            moved = os.copy_file_range(source, target, min(CHUNK * 16, size - done), done, done)
            if moved == 0:
                break
            done += moved
            tell(done)
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
    while done < size:
        data = os.pread(source, min(CHUNK, size - done), done)
        if not data:
            break
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, done)
            view = view[written:]
            done += written
        tell(done)
    return done


def count(fd: int, prefix_len: int, tell: Callable[[int], None] = _nobody) -> Counter:
    """Count a staged file's text: of the copy, so that it is what the guest will read. ``tell`` gets the bytes so far."""
    counter = Counter(prefix_len)
    at = 0
    while data := os.pread(fd, CHUNK, at):
        counter.feed(data)
        at += len(data)
        tell(at)
    counter.feed(b"", final=True)
    return counter


def snapshot(
    fd: int, info: os.stat_result, path: Path, stage_dir: Path, prefix_len: int, progress: Progress | None
) -> Admitted:
    """Stage one file: because it was asked for, or because the container's user may not read the original."""
    name = admission.guest_name(path.name)
    pace = Pace(progress)
    make_stage(stage_dir)
    try:
        check_space(stage_dir, info.st_size)
        folder = os.open(stage_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            out = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            size = copy(fd, out, info.st_size, lambda done: pace(lambda: _so_far("staging", done, info)))
            os.fchmod(out, STAGED_FILE)
            counter = count(out, prefix_len, lambda done: pace(lambda: _so_far("counting", done, info)))
            facts = counter.facts()
            identity = admission.Identity.of(os.fstat(out))
        finally:
            os.close(out)
    except OSError as exc:
        drop(stage_dir)
        raise InputError(
            f"staging {admission.shown(path)} failed: {exc.strerror}", hint="see the free disk space"
        ) from exc
    except BaseException:
        drop(stage_dir)
        raise
    os.close(fd)
    pace(lambda: _so_far("staging", size, info), last=True)
    return _staged_file(name, path, stage_dir, identity, facts, size)


def _so_far(work: str, done: int, info: os.stat_result) -> str:
    return f"{work}: {done >> 20} of {info.st_size >> 20} MiB"


def _staged_file(
    name: str, path: Path, stage_dir: Path, identity: admission.Identity, facts: Facts, size: int
) -> Admitted:
    target = f"{admission.GUEST_INPUT}/{name}"
    return admission.Admitted(
        kind="file",
        display=admission.shown(path),
        mounts=(Mount(str(stage_dir / name), target),),
        config={"kind": "file", "path": target, "index": None, "name": admission.shown(path.name)},
        identity=identity,
        facts=facts,
        total_bytes=size,
        files_preview=[{"path": admission.shown(path), "chars": facts.chars, "bytes": size}],
        warnings=facts.warnings(),
        staged=True,
        stage=stage_dir,
    )
