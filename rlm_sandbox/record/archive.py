"""The outer form of a bundle: a tar in one zstd frame, then a frame with the SHA-256 of everything before it.

Any tar program that knows zstd reads it (the last frame is of the skippable kind), and the same content always makes the same bytes: plain files
only, in one order, without times and owners. The reader is stricter than any tar program. A header must be, byte for byte, the one that the
writer would have made for that name and size; every length is known before the first byte is unpacked, and nothing may stand between, before or
behind what belongs there. So there is no path, link, device or second meaning to be careful with, and every byte of the file counts.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import zstandard

from rlm_sandbox.errors import BundleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNPACKED_MAX = 4 * 1024**3
"""Bytes that a bundle may unpack to unless its reader allows more: a run of ten thousand long calls with a 1 GiB input."""

ENTRIES_MAX = 2_000_000
"""Three texts a call for half a million calls."""

_LEVEL = 9
_WINDOW_MAX = 32 * 1024 * 1024
"""What unpacking may hold in memory; level 9 asks for a quarter of it."""

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAGIC = b"\x28\xb5\x2f\xfd"
_TRAILER = struct.Struct("<II8s32s")
_SKIPPABLE = 0x184D2A5B
_MARK = b"rlmsbdl1"
_NAME = re.compile(
    r"bundle\.json|SUMMARY\.md|statement\.json|statement\.json\.sig|journal\.jsonl|final|(?:blobs|input)/[0-9a-f]{64}"
)
_COPY = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One file of a bundle. Give ``data``, or ``path`` of a file of exactly ``size`` bytes."""

    name: str
    data: bytes = b""
    path: Path | None = None
    length: int = -1

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.data) if self.path is None else self.length


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def write(target: Path, entries: Iterable[Entry]) -> tuple[int, str]:
    """Write a bundle and return its size and SHA-256. It appears under its name whole, or not at all.

    Raises:
        UsageError: the target cannot be written, or a file changed while it was read.
    """
    listed = list(entries)
    total = sum(_BLOCK + _padded(entry.size) for entry in listed) + len(_END)
    try:
        _check_target(target)
        descriptor, name = tempfile.mkstemp(prefix=".rlm-part-", dir=target.parent)  # private, and nobody else's
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                digest = _write(_Summing(file), listed, total)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise UsageError(f"{target}: {exc.strerror}", hint="name a file in a folder that can be written") from exc
    return size, digest


def _check_target(target: Path) -> None:
    """Refuse to put a file in the place of something that is none: ``/dev/null`` is to stay what it is."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{target}: not a regular file", hint="name a new file, or one that may be replaced")


def _write(out: _Summing, entries: list[Entry], total: int) -> str:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=True)
    with compressor.stream_writer(cast("IO[bytes]", out), size=total, closefd=False) as stream:
        for entry in entries:
            stream.write(_header(entry.name, entry.size))
            if entry.path is None:
                stream.write(entry.data)
            else:
                _copy(entry, stream)
            stream.write(bytes(_padded(entry.size) - entry.size))
        stream.write(_END)
    out.write(_TRAILER.pack(_SKIPPABLE, _TRAILER.size - 8, _MARK, out.digest()))
    return out.digest().hex()


def _copy(entry: Entry, stream: IO[bytes]) -> None:
    assert entry.path is not None  # noqa: S101 - the caller looked
    left = entry.size
    with entry.path.open("rb") as source:
        while left and (data := source.read(min(_COPY, left))):
            stream.write(data)
            left -= len(data)
        if left or source.read(1):
            raise UsageError("the input changed while it was packed", hint="export again, or leave --include-input out")


class _Summing:
    """A file to write to that sums what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._sum.digest()


class Reading:
    """The entries of a bundle, one after the other. Each must be read or skipped before the next."""

    def __init__(self, stream: IO[bytes], total: int, digest: str) -> None:
        self.digest = digest
        """SHA-256 of the whole file."""
        self._stream = stream
        self._left = total
        self._unread = self._pad = 0

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield names and sizes; raises :class:`BundleError` on anything that is not as written."""
        previous: tuple[int, str] = (-1, "")
        for _ in range(ENTRIES_MAX):
            self._skip()
            header = self._take(_BLOCK)
            if header == bytes(_BLOCK):
                if self._take(_BLOCK) != bytes(_BLOCK) or self._left:
                    raise damaged("it does not end where it should")
                return
            name, size = self._parse(header)
            order = (_rank(name), name)
            if order <= previous:
                raise damaged("its files are doubled or out of order")
            previous = order
            self._unread, self._pad = size, _padded(size) - size
            yield name, size
        raise damaged("it has too many files")

    @staticmethod
    def _parse(header: bytes) -> tuple[str, int]:
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            good = _NAME.fullmatch(info.name) is not None and header == _header(info.name, info.size)
        except (tarfile.TarError, ValueError, struct.error):
            good = False
        if not good:
            raise damaged("it holds something that no bundle has (a path, a link, or a foreign header)")
        return info.name, info.size

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the current entry."""
        while self._unread:
            data = self._take(min(self._unread, _COPY))
            self._unread -= len(data)
            yield data

    def read(self, limit: int, name: str) -> bytes:
        """Return the content of the current entry; :class:`BundleError` if it is larger than ``limit``."""
        if self._unread > limit:
            raise damaged(f"{name[:80]} has {self._unread} bytes; at most {limit} make sense")
        return b"".join(self.chunks())

    def _skip(self) -> None:
        for _ in self.chunks():
            pass
        if self._take(self._pad) != bytes(self._pad):
            raise damaged("there is something between its files")
        self._pad = 0

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise damaged("it is shorter than it says")
        try:
            with _readable():
                data = self._stream.read(size)
        except zstandard.ZstdError:
            raise damaged("it cannot be decompressed") from None
        if len(data) != size:
            raise damaged("it is shorter than it says")
        self._left -= size
        return data


_ORDER = (
    "bundle.json",
    "SUMMARY.md",
    "statement.json",
    "statement.json.sig",
    "journal.jsonl",
    "final",
    "blobs",
    "input",
)


def _rank(name: str) -> int:
    return _ORDER.index(name.partition("/")[0])


def damaged(why: str) -> BundleError:
    """Return the refusal of a bundle that is not what it should be."""
    return BundleError(
        f"this bundle is refused: {why}", hint="it was damaged or changed on its way; get it again from whoever made it"
    )


@contextmanager
def reading(path: Path, *, unpacked_max: int = UNPACKED_MAX) -> Iterator[Reading]:
    """Open a bundle whose every byte has been checked against its own sum. Unpacks nothing yet.

    Raises:
        UsageError: there is no such file.
        BundleError: it is no bundle, is damaged, or would unpack to more than ``unpacked_max`` bytes.
    """
    with _open(path) as file:
        with _readable():
            end, digest = _check_sum(file)
            total = _check_frame(file, end)
        if total > unpacked_max:
            raise BundleError(
                f"this bundle is refused: it would unpack to {total} bytes, more than {unpacked_max}",
                hint="allow more with --max-size if you trust where it comes from",
            )
        file.seek(0)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        with decompressor.stream_reader(file, closefd=False) as stream:
            yield Reading(stream, total, digest)


def _open(path: Path) -> IO[bytes]:
    """Open a regular file; never waits for somebody at the other end of a pipe."""
    hint = "name a file that rlm-sandbox export wrote"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint=hint) from exc
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file"
        raise UsageError(f"{path}: {what}", hint=hint)
    return os.fdopen(descriptor, "rb")


@contextmanager
def _readable() -> Iterator[None]:
    """A file that cannot be read to its end (a bad disk, a server that is gone) is no defect of ours."""
    try:
        yield
    except OSError as exc:
        raise UsageError(f"the bundle cannot be read: {exc.strerror}", hint="copy it to a local disk") from exc


def _check_sum(file: IO[bytes]) -> tuple[int, str]:
    """Compare the file with the sum in its last frame; return where that begins, and the sum."""
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != _MAGIC:
        raise BundleError("this is no bundle", hint="name a file that rlm-sandbox export wrote")
    end = size - _TRAILER.size
    if end < _BLOCK // 8:
        raise damaged("it is cut off")
    file.seek(end)
    trailer = file.read(_TRAILER.size)
    magic, length, mark, recorded = _TRAILER.unpack(trailer)
    if (magic, length, mark) != (_SKIPPABLE, _TRAILER.size - 8, _MARK):
        raise damaged("it is cut off, or was not written by this program")
    file.seek(0)
    digest, left = hashlib.sha256(), end
    while left and (data := file.read(min(_COPY, left))):
        digest.update(data)
        left -= len(data)
    if left or digest.digest() != recorded:
        raise damaged("its bytes do not match its own sum")
    digest.update(trailer)
    return end, digest.hexdigest()


def _check_frame(file: IO[bytes], end: int) -> int:
    """Walk the blocks of the one zstd frame, which must end at ``end``; return how many bytes it unpacks to."""
    file.seek(0)
    head = file.read(32)
    try:
        facts = zstandard.get_frame_parameters(head)
        at = zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        raise damaged("it cannot be decompressed") from None
    if facts.content_size in {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR} or facts.dict_id:
        raise damaged("it does not say how much it unpacks to")
    last = False
    while not last:
        file.seek(at)
        raw = file.read(3)
        if len(raw) < 3 or at >= end:  # noqa: PLR2004 - a block's header
            raise damaged("it is cut off")
        word = int.from_bytes(raw, "little")
        last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
        if kind == 3:  # noqa: PLR2004 - reserved by the format
            raise damaged("it cannot be decompressed")
        at += 3 + (1 if kind == 1 else size)
    if at + (4 if facts.has_checksum else 0) != end:
        raise damaged("there is something behind its content")
    return int(facts.content_size)
