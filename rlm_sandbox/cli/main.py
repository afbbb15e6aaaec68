"""The command line's root: which module holds a command, and what a failure looks like.

Commands are imported when they are called, because most of what this package can do is heavier than most commands need.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any, NoReturn

import click

from rlm_sandbox import __version__
from rlm_sandbox.cli.common import FORMATS, examples
from rlm_sandbox.cli.ending import finish
from rlm_sandbox.errors import UsageError

_COMMANDS = {
    "start": "session",
    "exec": "session",
    "wait": "session",
    "interrupt": "session",
    "final": "session",
    "status": "session",
    "list": "session",
    "stop": "session",
    "gc": "session",
    "budget": "budget",
    "run": "run",
    "resume": "record",
    "history": "record",
    "report": "record",
    "diff": "record",
    "export": "record",
    "verify": "record",
    "replay": "record",
    "forget": "record",
    "image": "image",
    "doctor": "doctor",
    "broker": "broker",
    "skill": "skill",
}


class _Lazy(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        room = _COMMANDS.get(cmd_name)
        if room is None:
            return None
        module = importlib.import_module(f"rlm_sandbox.cli.{room}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "rlm-sandbox start --input /var/log/big.log",
        "rlm-sandbox exec -c 'print(len(context))'",
        "rlm-sandbox final",
        "rlm-sandbox stop",
        "rlm-sandbox run 'Which errors occur, and how often?' --input /var/log/big.log",
    ),
)
@click.version_option(__version__, prog_name="rlm-sandbox")
@click.option(
    "--format", "form", type=FORMATS, default=None, help="json (default) or text for a model; also after a command."
)
@click.pass_context
def cli(ctx: click.Context, form: str | None) -> None:
    """Answer questions over inputs too large for a model, with code that runs locked down."""
    ctx.obj = form


def main() -> NoReturn:
    """Run a command and exit with its code."""
    form = _format_asked(sys.argv[1:])
    signal.signal(signal.SIGTERM, _terminated)
    finish(_run, form)


def _terminated(number: int, frame: Any) -> NoReturn:
    """End as by Ctrl-C: by default the signal leaves what a command has begun (a draft of an image, a session of ``run``) where it lies."""
    del number, frame
    raise KeyboardInterrupt


def _run() -> Any:
    try:
        return cli.main(standalone_mode=False, prog_name="rlm-sandbox")
    except click.exceptions.NoArgsIsHelpError as exc:
        raise UsageError("a command is missing", hint=f"see {exc.ctx.command_path} --help" if exc.ctx else "") from exc
    except click.UsageError as exc:
        where = f"{exc.ctx.command_path} --help" if exc.ctx else "rlm-sandbox --help"
        raise UsageError(exc.format_message().replace("\n", " "), hint=f"see {where}") from exc
    except click.Abort:
        raise KeyboardInterrupt from None


def _format_asked(argv: list[str]) -> str:
    """Find ``--format`` even when the rest of the line cannot be parsed, so that a failure is printed in it."""
    for at, word in enumerate(argv):
        if word == "--format" and argv[at + 1 : at + 2] == ["text"]:
            return "text"
        if word == "--format=text":
            return "text"
    return "json"
