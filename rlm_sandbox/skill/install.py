"""Putting the skill where the client looks for it, and taking it away again.

Three forms: a link in the user's ``skills`` folder (an upgrade of the package is an upgrade of the skill), a copy in a project (to be committed with
it), and a plugin folder that is its own marketplace and brings ``bin/rlm-sandbox`` to the client's PATH. A folder of that name that is not ours is
never touched: ours are links to a skill of this name, or copies that carry a marker.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rlm_sandbox.errors import UsageError
from rlm_sandbox.skill import files
from rlm_sandbox.skill.files import NAME

MARKER = ".installed-by-rlm-sandbox"


def link(target: Path) -> str:
    """Make ``target`` a link to the skill; a copy where links cannot be made. Returns ``"link"`` or ``"copy"``."""
    _make_way(target)
    try:
        target.symlink_to(files.skill(), target_is_directory=True)
    except OSError:
        return copy(target)
    return "link"


def copy(target: Path, source: Path | None = None) -> str:
    """Make ``target`` a copy of the skill. Returns ``"copy"``."""
    _make_way(target)
    try:
        shutil.copytree(source or files.skill(), target, ignore=shutil.ignore_patterns("__pycache__"))
        (target / MARKER).touch()
    except (OSError, shutil.Error) as exc:
        raise UsageError(f"{target} cannot be written: {exc}", hint="make the folder writable") from exc
    return "copy"


def plugin(target: Path) -> None:
    """Make ``target`` the plugin, with a launcher that knows this installation."""
    copy(target, files.bundle())
    launcher = target / "bin" / NAME
    launcher.chmod(0o755)
    (target / "bin" / "program").write_text(f"{program()}\n", encoding="utf-8")


def program() -> Path:
    """Return the command line's program of this installation."""
    beside = Path(sys.executable).with_name(NAME)
    found = shutil.which(NAME)
    return beside if beside.exists() or found is None else Path(found).absolute()


def remove(target: Path) -> bool:
    """Remove what was installed there; False when nothing was. Raises :class:`UsageError` for what is not ours."""
    if not _exists(target):
        return False
    _make_way(target)
    return True


def _make_way(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _exists(target):
            return
        if not _is_ours(target):
            raise UsageError(
                f"{target} is there and was not installed by this command", hint="move it away, then run this again"
            )
        if target.is_symlink():
            target.unlink()
        else:
            shutil.rmtree(target)
    except OSError as exc:
        raise UsageError(f"{target} cannot be replaced: {exc.strerror}", hint="make the folder writable") from exc


def _exists(target: Path) -> bool:
    return os.path.lexists(target)


def _is_ours(target: Path) -> bool:
    """A link to a folder of this name that is a skill or is gone; or a copy with our marker."""
    if target.is_symlink():
        return target.readlink().name == NAME and (not target.exists() or (target / "SKILL.md").is_file())
    return (target / MARKER).is_file()
