"""What commands share: the ``--format`` option that may stand before or after a command, and the shape of their help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

FORMATS = click.Choice(["json", "text"])


def format_option(function: F) -> F:
    """Add ``--format`` after the command; it wins over one before it."""
    return click.option("--format", "form", type=FORMATS, default=None, help="json (default) or text for a model.")(
        function
    )


def group_format_option(function: F) -> F:
    """Take ``--format`` between a group and its command too; one after the command wins over it."""
    return click.option(
        "--format", type=FORMATS, default=None, expose_value=False, callback=_remember, help="As after the command."
    )(function)


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    del param
    root = ctx.find_root()
    root.obj = value or root.obj


def chosen(form: str | None) -> str:
    """Return the format in force and remember it for a failure."""
    root = click.get_current_context().find_root()
    root.obj = form or root.obj or "json"
    return str(root.obj)


def examples(*lines: str) -> str:
    """Return the Examples section of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


session_option = click.option("--session", metavar="ID", default=None, help="The session (default: the only live one).")
