"""The skill's files, the same in a wheel (``bundle`` beside this module) and in a clone (``skill`` at the project's root)."""

from __future__ import annotations

from pathlib import Path

from rlm_sandbox.errors import PrerequisiteError, UsageError

NAME = "rlm-sandbox"

SHOW_MAX = 8000
"""Characters of a page: what a model is shown at once anywhere in this product."""


def bundle() -> Path:
    """Return the folder that is the plugin: it holds the skill's folder, the plugin's manifests and ``bin``."""
    here = Path(__file__).resolve().parent
    for folder in (here / "bundle", here.parents[1] / "skill"):
        if (folder / NAME / "SKILL.md").is_file():
            return folder
    raise PrerequisiteError("the skill's files are not part of this installation", hint="install rlm-sandbox again")


def skill() -> Path:
    """Return the skill's own folder."""
    return bundle() / NAME


def pages() -> dict[str, Path]:
    """Return the skill's pages by name: ``skill`` is SKILL.md, the others are its references."""
    folder = skill()
    references = {path.stem: path for path in sorted((folder / "references").glob("*.md"))}
    return {"skill": folder / "SKILL.md", **references}


def page(name: str) -> str:
    """Return the text of a page. Raises :class:`UsageError` for one that does not exist."""
    found = pages()
    if name not in found:
        raise UsageError(f"there is no page {name[:40]!r}", hint=f"pages: {', '.join(found)}")
    return found[name].read_text(encoding="utf-8")
