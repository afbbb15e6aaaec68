"""Are the bytes that the guest sees those of the file that was admitted here? Compared by digest, where device and inode cannot tell.

An engine on another machine, or in a virtual one, resolves a path on its own disk: it may hold another file of the same name and size. So the
host picks ranges of the input, at random where it is long, the guest hashes them before any untrusted code runs, and a difference stops the
start. A sample of a long file proves little about what lies between its ranges, and whoever relies on it says so.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox.container.admission import host_path
from rlm_sandbox.errors import InputError

if TYPE_CHECKING:
    from rlm_sandbox.container.admission import Admitted

WHOLE_MAX = 64 * 1024 * 1024
"""Bytes up to which the whole of an input on another machine is compared: 0.2 s of hashing on each side, where a start over ssh takes a second."""

RANGES = 64
RANGE_BYTES = 64 * 1024
"""Of a longer input so many ranges of so many bytes are compared: 4 MiB, with the beginning and the end among them. On this machine (runsc, kata)
that is enough for any input longer than that: what lies at the path is known, and only a swap during the start is looked for."""


@dataclass(frozen=True)
class InputSample:
    """What the guest is asked to hash. ``ranges`` are pairs of offset and length in bytes, ``digest`` is the SHA-256 of what lies there here."""

    ranges: tuple[tuple[int, int], ...]
    digest: str
    whole: bool

    @property
    def numbers(self) -> list[int]:
        """The ranges as one list: offset, length, offset, length and so on."""
        return [number for pair in self.ranges for number in pair]


def sample_of(admitted: Admitted, *, local: bool = False) -> InputSample:
    """Choose the ranges of a file, or of the index of a directory, and hash them; blocks for as long as that takes.

    Raises:
        InputError: the input cannot be read any more.
    """
    whole_max = RANGES * RANGE_BYTES if local else WHOLE_MAX
    try:
        if admitted.fd >= 0 and admitted.config["index"] is None:
            return _sample(admitted.fd, admitted.identity.size, whole_max)
        path = host_path(admitted.mounts, str(admitted.config["index"] or admitted.config["path"]))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return _sample(fd, os.fstat(fd).st_size, whole_max)
        finally:
            os.close(fd)
    except OSError as exc:
        raise InputError(f"the input cannot be read: {exc.strerror}", hint="check --input, then start again") from exc


def note_unproven(admitted: Admitted, sample: InputSample) -> list[str]:
    """Mark an input of another machine's of which the sample proves only a part, and return the warning that says so.

    A staged directory lies beside its index in the state folder, so an engine that sees the right index sees the right files.
    """
    if sample.whole and (admitted.kind == "file" or admitted.staged):
        return []
    admitted.unproven = True
    read = sum(length for _, length in sample.ranges)
    compared = (
        f"{read} of its {admitted.identity.size} bytes were"
        if admitted.kind == "file"
        else "only its list of files was"
    )
    told = f"the engine reads the input on another machine: {compared} compared with what lies here"
    return [
        f"{told}; lengths and beginning are those of what lies here, and the record will hold no digest of the input"
    ]


def _sample(fd: int, size: int, whole_max: int) -> InputSample:
    whole = size <= whole_max
    ranges = ((0, size),) if whole else _scattered(size)
    digest = hashlib.sha256()
    for offset, length in ranges:
        while length > 0 and (data := os.pread(fd, min(length, 1024 * 1024), offset)):
            digest.update(data)
            offset, length = offset + len(data), length - len(data)  # noqa: PLW2901 - the rest of this range
    return InputSample(ranges, digest.hexdigest(), whole)


def _scattered(size: int) -> tuple[tuple[int, int], ...]:
    last = size - RANGE_BYTES
    offsets = {0, last, *(secrets.randbelow(last) for _ in range(RANGES - 2))}
    return tuple((offset, RANGE_BYTES) for offset in sorted(offsets))
