"""What commands share: the ``--format`` option that may stand before or after a command, and the shape of their help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlm_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

FORMATS = click.Choice(["json", "text"])


class Command(click.Command):
    """A command that takes an option at most once, unless the option is made to be repeated.

    click uses the last value and drops the others, so ``--input A --input B`` would answer a question about B alone.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a repeated option, then parse as usual."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            single = isinstance(parameter, click.Option) and not (
                parameter.multiple or parameter.is_flag or parameter.count
            )
            if single and given.count(parameter) > 1:
                name = parameter.opts[-1]
                raise UsageError(
                    f"{name} was given {given.count(parameter)} times, and takes one value",
                    hint=_ONCE.get(name, "give it once"),
                )
        return super().parse_args(ctx, args)


_ONCE = {
    "--input": "one session reads one file or directory: put the inputs in one directory and name that",
    "--glob": "join the patterns with commas: --glob '*.py,*.md'",
    "--exclude": "join the patterns with commas: --exclude 'tests/,*.log'",
    "-c": "put all of the code into one -c, or pass it on standard input",
    "-f": "put all of the code into one file, or pass it on standard input",
}
"""What to type instead, by option."""


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a :class:`Command`; as ``click.command``."""
    return click.command(name, cls=Command, **attributes)


def group(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    """Make a :class:`Group`; as ``click.group``."""
    return click.group(name, cls=Group, **attributes)


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
