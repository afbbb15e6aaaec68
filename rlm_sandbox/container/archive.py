"""A docker-archive written by hand, so that the same content always has the same image id.

An image's id is the hash of its configuration, which names the hash of each layer. Both are exact here: entries are sorted, times are
the epoch, owner is root, and modes are 0755 or 0644, so nothing in an image is writable by its user or setuid.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from rlm_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EPOCH = "1970-01-01T00:00:00Z"

ARCHES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass
class Layer:
    """Files, folders and links by their path in the image (without a leading slash)."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    executable: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    """Mode of a folder; those that files imply are 0755."""

    def add(self, path: PurePosixPath | str, content: Path | bytes, *, executable: bool = False) -> None:
        """Add one file."""
        name = str(path).lstrip("/")
        self.files[name] = content
        if executable:
            self.executable.add(name)

    def write(self, out: IO[bytes]) -> str:
        """Write the layer as a tar and return its digest, ``sha256:...``."""
        hashing = _HashingWriter(out)
        folders = dict(self.folders)
        for name in [*self.files, *self.links, *self.folders]:
            for parent in PurePosixPath(name).parents[:-1]:
                folders.setdefault(str(parent), 0o755)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
            for name in sorted({*folders, *self.files, *self.links}):
                self._write_entry(tar, name, folders)
        return f"sha256:{hashing.hexdigest()}"

    def _write_entry(self, tar: tarfile.TarFile, name: str, folders: Mapping[str, int]) -> None:
        info = tarfile.TarInfo(name)
        info.mtime = info.uid = info.gid = 0
        if name in folders:
            info.type, info.mode = tarfile.DIRTYPE, folders[name]
            tar.addfile(info)
        elif name in self.links:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, self.links[name], 0o777
            tar.addfile(info)
        else:
            info.mode = 0o755 if name in self.executable else 0o644
            content = self.files[name]
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                return
            with content.open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                tar.addfile(info, file)


class _HashingWriter:
    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._out.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def architecture(machine: str) -> str:
    """Return the image's name for ``platform.machine()``."""
    try:
        return ARCHES[machine]
    except KeyError:
        raise ImageError(f"no image can be built on {machine}", hint="x86_64 and aarch64 are supported") from None


def write_archive(
    out: IO[bytes], scratch: Path, layers: list[Layer], *, config: Mapping[str, Any], tag: str, machine: str
) -> str:
    """Write a docker-archive for ``docker load`` and return the image id that it will have.

    ``scratch`` is a folder for the layers until they are copied in; ``config`` is the image's ``Config``.
    """
    digests: list[str] = []
    paths: list[Path] = []
    for number, layer in enumerate(layers):
        path = scratch / f"layer{number}.tar"
        with path.open("wb") as file:
            digests.append(layer.write(file))
        paths.append(path)
    document = {
        "architecture": architecture(machine),
        "os": "linux",
        "created": EPOCH,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [{"created": EPOCH, "created_by": "rlm-sandbox image build"} for _ in digests],
    }
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    image_id = hashlib.sha256(raw).hexdigest()
    names = [f"{digest.removeprefix('sha256:')}/layer.tar" for digest in digests]
    manifest = [{"Config": f"{image_id}.json", "RepoTags": [tag], "Layers": names}]
    wrapper = Layer()
    wrapper.add("manifest.json", json.dumps(manifest, sort_keys=True).encode())
    wrapper.add(f"{image_id}.json", raw)
    for name, path in zip(names, paths, strict=True):
        wrapper.add(name, path)
    wrapper.write(out)
    return f"sha256:{image_id}"
