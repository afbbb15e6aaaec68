"""A session's bulk, kept once: cell sources, prompts, answers, output, all by their SHA-256 in one append-only file.

One file and not one per text, because a run of ten thousand calls has thirty thousand of them, and because one file needs one sync. An entry
is the digest, the stored and the raw length, and a zstd frame. Writing is one ``write``; a torn last entry is cut off when the pack is opened
again. What is read is checked against its name every time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from typing import TYPE_CHECKING

import zstandard

from rlm_sandbox.errors import BundleError, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "blobs.pack"

BLOB_MAX = 64 * 1024 * 1024
"""Bytes of one text: four times what the channel carries in one message. A larger final answer is recorded by its digest."""

_HEAD = struct.Struct(">32sII")
_LEVEL = 3


class Pack:
    """Bytes by digest. ``write=False`` opens what another process may be appending to and ignores a torn tail.

    Raises:
        BundleError: the file cannot be opened.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self._file = open_record(folder / NAME, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY)
        self._where: dict[str, tuple[int, int, int]] = {}
        self._end = self._scan()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        if write:
            os.ftruncate(self._file, self._end)

    def _scan(self) -> int:
        at, size = 0, os.fstat(self._file).st_size
        while at + _HEAD.size <= size:
            digest, stored, raw = _HEAD.unpack(os.pread(self._file, _HEAD.size, at))
            if at + _HEAD.size + stored > size or raw > BLOB_MAX:
                break
            self._where[digest.hex()] = (at + _HEAD.size, stored, raw)
            at += _HEAD.size + stored
        return at

    @property
    def file(self) -> int:
        """The descriptor, to be synced."""
        return self._file

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its digest; it is in the kernel's hands when this returns."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._where:
            if len(data) > BLOB_MAX:
                raise InternalError(f"a text of {len(data)} bytes does not fit the journal", hint="see BLOB_MAX")
            body = self._compressor.compress(data)
            _write(self._file, _HEAD.pack(bytes.fromhex(digest), len(body), len(data)) + body, self._end)
            self._where[digest] = (self._end + _HEAD.size, len(body), len(data))
            self._end += _HEAD.size + len(body)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of that digest; ``KeyError`` when they are not here or are not what their name says."""
        at, stored, raw = self._where[digest]
        try:
            data = zstandard.ZstdDecompressor().decompress(os.pread(self._file, stored, at), max_output_size=raw)
        except zstandard.ZstdError:
            raise KeyError(digest) from None
        if len(data) != raw or hashlib.sha256(data).hexdigest() != digest:
            raise KeyError(digest)
        return data

    def size(self, digest: str) -> int:
        """Return how many bytes a text has; ``KeyError`` when it is not here."""
        return self._where[digest][2]

    def __contains__(self, digest: str) -> bool:
        return digest in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def open_record(path: Path, flags: int) -> int:
    """Open a file of a record, made private. Raises :class:`BundleError` where it is none, or is gone."""
    try:
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        why = "not a regular file"
    except OSError as exc:
        why = exc.strerror or str(exc)
    raise BundleError(
        f"the record of session {path.parent.name} cannot be opened: {path.name}: {why}",
        hint="its folder was changed; rlm-sandbox forget removes what is left of it",
    )


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done
