"""Archives, opened inside the container: their members as texts, never as files with names of their own.

An archive is hostile input to a parser. Here it meets one that runs without privileges, network or a path to write to:
members are read by name into memory or into an unlinked file under ``/tmp``, every byte that comes out is counted
against a limit whatever the archive says about itself, and nothing in it is followed (links, nested archives, paths).
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import os
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rlm_sandbox.guest import utf8
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.encoding import as_utf8
from rlm_sandbox.guest.errors import InputChanged, RLMError, TooLarge
from rlm_sandbox.guest.text import Text

if TYPE_CHECKING:
    from rlm_sandbox.guest.source import Source

# Bytes of one member, and the furthest position in a compressed tar: what /tmp holds by default, and a minute of work.
MEMBER_MAX = 256 * 1024 * 1024
STREAM_MAX = 16 * 1024 * 1024 * 1024
# Members: one costs about 1 KiB of tables.
MEMBERS_MAX = 100_000
# A member up to this size is held in memory, a larger one in /tmp.
SPOOL = 4 * 1024 * 1024
_STEP = 1024 * 1024
_ENCRYPTED = 1  # the flag of a zip's member
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError,
    ValueError,
)  # fmt: skip


class Archive(Mapping[str, "str | Text"]):
    """Members by name, in the archive's order; of members with one name the last counts. Reading one expands it."""

    def __init__(self, members: dict[str, Any], opener: Any, str_max: int, limit: int) -> None:
        if len(members) > MEMBERS_MAX:
            raise TooLarge(f"the archive has {len(members)} members, more than {MEMBERS_MAX}")
        self._members = members
        self._opener = opener
        self._str_max = str_max
        self._limit = limit
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> str | Text:
        member = self._members[name]
        with self._lock, _told(name), self._opener(member) as stream:  # all members share one position in the file
            source = as_utf8(_spooled(stream, name, self._limit))
        if source.size <= self._str_max:
            return utf8.decode(source.read(0, source.size))
        return Text(Document(source, str_max=self._str_max))

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<archive of {len(self)} members>"


def open_archive(source: Source, name: str, *, str_max: int, limit: int) -> Archive:
    """Return the members of a zip, tar (also compressed), gz, bz2, xz or zst file. What it is, its bytes say."""
    head = source.read(0, min(source.size, 512))
    with _told(name):
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            bundle = zipfile.ZipFile(seekable(source))
            infos = {info.filename: info for info in bundle.infolist() if not info.is_dir()}
            return Archive(infos, lambda info: _unlocked(bundle, info), str_max, limit)
        expand = _expander(head)
        tar_like = _tar(_Limited(expand(seekable(source))) if expand else seekable(source))
        first = tar_like.next() if tar_like else None
        if tar_like and (first or not expand):  # zeros read as an empty tar; compressed ones are rather a file of zeros
            files = {}
            for member in tar_like:
                if member.isreg():
                    files[member.name] = member
                if len(files) > MEMBERS_MAX:
                    break
            return Archive(files, tar_like.extractfile, str_max, limit)
        if expand is None:
            raise RLMError(f"{name} is no archive that can be opened", "zip, tar, gz, bz2, xz and zst can")
        inner = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return Archive({inner: None}, lambda _: expand(seekable(source)), str_max, limit)


def _unlocked(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.flag_bits & _ENCRYPTED:
        raise RLMError(f"{info.filename} is encrypted", "decrypt it on the host first")
    return bundle.open(info)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what the parsers raise about a broken archive into one kind of error."""
    try:
        yield
    except (RLMError, KeyError):
        raise
    except _BROKEN as error:
        raise RLMError(f"{name} cannot be read as an archive: {error or type(error).__name__}") from error


def _expander(head: bytes) -> Any:
    """Return what opens a compressed stream that begins like this, or None."""
    if head.startswith(b"\x1f\x8b"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd()
    return None


def _zstd() -> Any:
    """Return what opens a zst stream: Python has it from 3.14 on, the ``data`` image by pyarrow."""
    try:
        return importlib.import_module("compression.zstd").ZstdFile
    except ImportError:
        pass
    try:
        stream = importlib.import_module("pyarrow").CompressedInputStream
    except ImportError:
        raise RLMError(
            "zst needs the data image, or Python 3.14", "start --image data, or decompress it on the host"
        ) from None
    return lambda file: io.BufferedReader(_Forward(file, lambda source: stream(source, "zstd")), _STEP)


class _Forward(io.RawIOBase):
    """A stream that can only be read on, made seekable: back is once more from the beginning."""

    def __init__(self, file: BinaryIO, opener: Any) -> None:
        self._file = file
        self._opener = opener
        self._stream = opener(file)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise OSError("the length of a compressed stream is not known")
        target = max(0, offset + (self._at if whence == io.SEEK_CUR else 0))
        if target < self._at:
            self._file.seek(0)
            self._stream, self._at = self._opener(self._file), 0
        while self._at < target and (data := self._stream.read(min(_STEP, target - self._at))):
            self._at += len(data)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _tar(file: Any) -> tarfile.TarFile | None:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError:
        return None


def _spooled(stream: BinaryIO, name: str, limit: int) -> Source:
    """Expand a stream, counting what comes out."""
    file = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - lives as long as the text
    size = 0
    while data := stream.read(_STEP):
        size += len(data)
        if size > limit:
            raise TooLarge(f"{name} expands to more than {limit} bytes", "pass limit= if /tmp can hold it")
        try:
            file.write(data)
        except OSError as error:
            raise TooLarge(f"{name} does not fit into /tmp after {size} bytes") from error
    file.flush()
    return _Spooled(file, size)


class _Spooled:
    """A source over a temporary file that has no name, or over memory if it is small."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self._memory = None if file._rolled else file._file.getvalue()  # noqa: SLF001 - it has no other way to say so
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        """Return the range."""
        if self._memory is not None:
            return cast("bytes", self._memory[start:stop])
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) < stop - start:
            raise InputChanged("a temporary file under /tmp was cut short")
        return data

    def check(self) -> None:
        """Nobody else has it."""

    def after_fork(self) -> None:
        """Nothing is held."""


def seekable(source: Source) -> BinaryIO:
    """Return a source as the file object that parsers expect."""
    return cast("BinaryIO", io.BufferedReader(_SourceFile(source), _STEP))


class _SourceFile(io.RawIOBase):
    """A source as a file object."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._source.size, self._at + len(buffer))
        data = self._source.read(self._at, stop) if self._at < stop else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Limited(io.RawIOBase):
    """A compressed stream that ends in an error beyond ``STREAM_MAX`` bytes: small archives can expand without end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > STREAM_MAX:
            raise TooLarge(f"the archive expands to more than {STREAM_MAX} bytes")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._file.tell() > STREAM_MAX:
            raise TooLarge(f"the archive expands to more than {STREAM_MAX} bytes")
        return len(data)
