"""The ``budget`` command: what was spent, what may be, and changes to that."""

from __future__ import annotations

from typing import Any

import click

from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, command, examples, format_option, session_option
from rlm_sandbox.daemon import client
from rlm_sandbox.errors import UsageError


@command(
    "budget",
    epilog=examples(
        "rlm-sandbox budget",
        "rlm-sandbox budget --session ID --set 200",
        "rlm-sandbox budget --set-token-limit 2000000 --set-token-warning 500000",
        "rlm-sandbox budget --set-cost-limit 1.50",
        "rlm-sandbox budget --history",
        "rlm-sandbox budget --verify",
    ),
)
@session_option
@click.option("--set", "set_calls", type=click.IntRange(min=0), default=None, metavar="N", help="Set the cap on calls.")
@click.option("--set-token-limit", type=click.IntRange(min=0), default=None, metavar="N", help="Set the cap on tokens.")
@click.option(
    "--set-token-warning", type=click.IntRange(min=0), default=None, metavar="N", help="Set the warning threshold."
)
@click.option("--clear-token-limit", is_flag=True, help="Remove the cap on tokens.")
@click.option("--clear-token-warning", is_flag=True, help="Remove the warning threshold.")
@click.option(
    "--set-cost-limit", type=click.FloatRange(min=0, max=1e9), default=None, metavar="USD", help="Set the cap on money."
)
@click.option("--history", is_flag=True, help="List the calls: time, model, tokens, cost, cache, attempts.")
@click.option("--verify", is_flag=True, help="Derive every sum of the ledger anew from its events.")
@format_option
def budget_command(
    session: str | None, set_calls: int | None, history: bool, verify: bool, form: str | None, **caps: Any
) -> None:
    """Show a session's account, after changing its caps where asked."""
    form = chosen(form)
    if history and verify:
        raise UsageError("--history and --verify exclude each other", hint="choose one")
    if (history or verify) and (set_calls is not None or any(value not in (None, False) for value in caps.values())):
        raise UsageError("--history and --verify change no caps", hint="set the caps in a command before it")
    if history or verify:
        op = "budget_history" if history else "budget_verify"
        output.document(client.call(op, {"session": session}, spawn=False), form, op)
        return
    for name in ("token_limit", "token_warning"):
        if caps[f"clear_{name}"] and caps[f"set_{name}"] is not None:
            flag = name.replace("_", "-")
            raise UsageError(f"--set-{flag} and --clear-{flag} exclude each other", hint="choose one")
    output.document(client.call("budget", {"session": session, "set": set_calls, **caps}, spawn=False), form, "budget")
