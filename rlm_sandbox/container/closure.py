"""The shared libraries that binaries need, asked of the dynamic loader itself.

A binary names its loader (``PT_INTERP``); that loader, run with ``--list``, prints where it finds every library, by the same
rules it uses at run time. Only files of the running interpreter and of hash-checked wheels are listed this way.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOUND = re.compile(r"^\s*(\S+) => (/\S.*?) \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"^\s*(\S+) => not found$")
_PT_INTERP = 3


def loader_of(binary: Path) -> str:
    """Return the path of the dynamic loader that a 64-bit ELF executable names."""
    with binary.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise ImageError(
                f"{binary} is not a 64-bit ELF program", hint="build the image with a Dockerfile: --from-base IMAGE"
            )
        offset, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
        for at in range(0, len(table), size):
            if struct.unpack_from("<I", table, at)[0] == _PT_INTERP:
                start, length = struct.unpack_from("<Q", table, at + 8)[0], struct.unpack_from("<Q", table, at + 32)[0]
                file.seek(start)
                return file.read(length).rstrip(b"\0").decode("ascii")
    raise ImageError(f"{binary} is statically linked", hint="build the image with a Dockerfile: --from-base IMAGE")


def libraries(loader: str, binaries: Iterable[Path]) -> dict[str, Path]:
    """Return ``{soname: file}`` of everything that ``binaries`` need, transitively, without the loader."""
    found: dict[str, Path] = {}
    for binary in binaries:
        done = subprocess.run(  # noqa: S603 - the interpreter's own loader, on files named by the build
            [loader, "--list", str(binary)], capture_output=True, text=True, check=False, env={}, timeout=60
        )
        if done.returncode != 0 and "statically linked" not in done.stdout + done.stderr:
            raise ImageError(f"the dynamic loader cannot read {binary.name}: {done.stderr.strip()[:200]}")
        for line in done.stdout.splitlines():
            if missing := _MISSING.match(line):
                raise ImageError(f"{binary.name} needs {missing[1]}, which is not on this machine")
            if match := _FOUND.match(line):
                found.setdefault(Path(match[1]).name, Path(match[2]))
    found.pop(Path(loader).name, None)
    return found
