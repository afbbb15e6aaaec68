"""The ``broker`` commands: the daemon in the foreground, its state, its end."""

from __future__ import annotations

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, examples, format_option, group, group_format_option
from rlm_sandbox.daemon import client
from rlm_sandbox.daemon.paths import socket_path
from rlm_sandbox.errors import NoSuchSession


@group("broker", epilog=examples("rlm-sandbox broker status", "rlm-sandbox broker stop", "rlm-sandbox broker serve"))
@group_format_option
def broker_command() -> None:
    """The broker daemon, one for each state folder; started on demand."""


@broker_command.command(
    "serve", epilog=examples("rlm-sandbox broker serve", "rlm-sandbox broker serve --idle-timeout 0")
)
@click.option(
    "--idle-timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="S",
    help="Seconds without use until it ends (0: never).",
)
@format_option
def serve_command(idle_timeout: float, form: str | None) -> None:
    """Run the daemon in the foreground, for a service manager."""
    chosen(form)
    from rlm_sandbox.daemon.__main__ import run  # noqa: PLC0415 - heavy

    run(idle_s=idle_timeout or float("inf"))


@broker_command.command("status", epilog=examples("rlm-sandbox broker status"))
@format_option
def status_command(form: str | None) -> None:
    """Tell whether the daemon runs, where, and for which sessions."""
    form = chosen(form)
    try:
        state = client.call("broker_status", {}, spawn=False)
    except NoSuchSession:
        home = settings.home()
        state = {
            "format_version": 1,
            "running": False,
            "pid": None,
            "version": None,
            "socket": str(socket_path(home)),
            "home": str(home),
            "sessions": [],
            "uptime_s": None,
        }
    output.document(state, form, "broker")


@broker_command.command("stop", epilog=examples("rlm-sandbox broker stop"))
@format_option
def stop_command(form: str | None) -> None:
    """End the daemon and every session it holds."""
    form = chosen(form)
    try:
        stopped = client.call("broker_stop", {}, spawn=False)
    except NoSuchSession:
        stopped = {"stopped": False, "pid": None}
    else:
        client.await_end()
    output.document({"format_version": 1, **stopped}, form, "broker")
