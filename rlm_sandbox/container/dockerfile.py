"""Building an image by its Dockerfile, with the engine's own builder, on a base image that the user names."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

from rlm_sandbox.container import offline
from rlm_sandbox.container.failures import boundary, one_line
from rlm_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rlm_sandbox.container.engine import Engine

BUILDER = ("__init__.py", "archive.py", "assemble.py", "closure.py", "offline.py", "packages.py", "precompile.py",
           "data-requirements.txt")  # fmt: skip
"""Files of this package that run inside the build; they need the standard library only."""


def path_of(name: str) -> Path:
    """Return the Dockerfile of a named image: in an installed package, or in a source checkout."""
    for folder in (offline.PACKAGE / "images", offline.PACKAGE.parent / "images"):
        if (found := folder / name / "Dockerfile").is_file():
            return found
    raise ImageError(
        f"the Dockerfile of the image {name} is not installed", hint="build it offline: leave out --from-base"
    )


def context_files(name: str) -> dict[str, Path]:
    """Return the build's context, as in a source checkout, but nothing that the build does not use."""
    files = {f"images/{name}/Dockerfile": path_of(name), "rlm_sandbox/errors.py": offline.PACKAGE / "errors.py"}
    files |= {f"rlm_sandbox/container/{part}": offline.PACKAGE / "container" / part for part in BUILDER}
    return files | offline.guest_files()


def context(name: str) -> bytes:
    """Return the context as a tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for target, path in sorted(context_files(name).items()):
            content = path.read_bytes()
            info = tarfile.TarInfo(target)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def build(
    engine: Engine, name: str, *, base: str, tag: str, labels: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Build and tag. Raises :class:`ImageError` with the step that failed."""
    say(f"building {tag} on {base}")
    with boundary("build the image"):
        lines = engine.slow.build(
            fileobj=io.BytesIO(context(name)), custom_context=True, encoding=None, dockerfile=f"images/{name}/Dockerfile",
            buildargs={"BASE": base}, labels=dict(labels), tag=tag, rm=True, forcerm=True, decode=True, pull=False,
            network_mode="none" if name == "base" else "default", use_config_proxy=False,
        )  # fmt: skip
        for line in lines:
            _follow(line, say)


def _follow(line: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if "error" in line:
        raise ImageError(
            f"the build failed: {one_line(str(line['error']))}", hint="run docker build by hand to see all of it"
        )
    text = one_line(str(line.get("stream", "")))
    if text.startswith("Step "):
        say(text)
