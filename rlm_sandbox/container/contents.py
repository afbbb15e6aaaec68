"""What is in an image, read from the image itself: files by path, whichever way it was built.

The engine hands out an image as a tar of layers. They are read as a stream of names and digests; nothing is unpacked on the host, and nothing of it
is run.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import IO, TYPE_CHECKING, Any

from rlm_sandbox.container.failures import boundary
from rlm_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.container.engine import Engine

SPOOL_MAX = 256 * 2**20
"""Bytes of a saved image that are kept in memory before the rest goes to a temporary file."""

METADATA_MAX = 2**20
"""Bytes of a package's description that are read."""


@dataclass(frozen=True)
class Package:
    """A Python package that an image holds. ``license`` is as its author wrote it, empty where he wrote nothing."""

    name: str
    version: str
    license: str


@dataclass(frozen=True)
class Contents:
    """``files`` are SHA-256 digests by path, ``programs`` those that can be loaded or run, ``packages`` by what pip recorded."""

    files: dict[str, str]
    programs: dict[str, str]
    packages: tuple[Package, ...]
    layers: tuple[str, ...]


def read(engine: Engine, ident: str) -> Contents:
    """Read an image; blocks for about a second per hundred megabytes. Raises :class:`ImageError` when it makes no sense."""
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_MAX) as saved:
        with boundary("hand out the image"):
            for chunk in engine.slow.get_image(ident):
                saved.write(chunk)
        saved.seek(0)
        try:
            return _read(saved)
        except (tarfile.TarError, ValueError, KeyError, TypeError) as exc:
            raise ImageError(f"the image {ident[:19]} cannot be read: {exc}", hint="build it again") from exc


def _read(saved: IO[bytes]) -> Contents:
    files: dict[str, str] = {}
    programs: dict[str, str] = {}
    packages: list[Package] = []
    with tarfile.open(fileobj=saved) as outer:
        names: list[str] = json.load(_member(outer, "manifest.json"))[0]["Layers"]
        config: dict[str, Any] = json.load(_member(outer, json.load(_member(outer, "manifest.json"))[0]["Config"]))
        for name in names:
            with tarfile.open(fileobj=_member(outer, name)) as layer:
                for path, data in _regular(layer):
                    files[path] = hashlib.sha256(data).hexdigest()
                    if data[:4] == b"\x7fELF":
                        programs[path] = files[path]
                    if path.endswith(".dist-info/METADATA"):
                        packages.append(_package(data))
    return Contents(files, programs, tuple(packages), tuple(config["rootfs"]["diff_ids"]))


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise ValueError(name)
    return found


def _regular(layer: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for entry in layer:
        if entry.isreg() and (stream := layer.extractfile(entry)) is not None:
            yield "/" + entry.name.lstrip("./"), stream.read()


def _package(metadata: bytes) -> Package:
    fields = HeaderParser().parsestr(metadata[:METADATA_MAX].decode("utf-8", "replace"))
    license_ = str(fields.get("License-Expression") or fields.get("License") or "")
    return Package(
        str(fields.get("Name", "")), str(fields.get("Version", "")), license_.splitlines()[0] if license_ else ""
    )
