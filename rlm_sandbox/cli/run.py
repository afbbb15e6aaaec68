"""The ``run`` command: one question over one input, start to stop.

A strategy is a guest program executed through the same ``exec`` as any cell. The answer goes to stdout, everything else to stderr, and the
session is stopped however the run ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, command, examples, format_option
from rlm_sandbox.cli.session import start_flags
from rlm_sandbox.daemon import client, request
from rlm_sandbox.errors import (
    DeadlineError,
    InternalError,
    InterruptedByUser,
    ProviderError,
    RLMError,
    UsageError,
    from_kind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTO_MAP_BYTES = 256 * 1024
"""Up to this size ``auto`` reads everything (map-reduce, some dozens of chunks), but for logs; beyond it, code narrows first (filter)."""

_LOGGED = re.compile(r"\b\d{1,2}:\d{2}:\d{2}\b|\b(?:FATAL|ERROR|WARN|WARNING|INFO|DEBUG|TRACE)\b|\blevel=")
"""What a line of a log has near its beginning."""

CELL_S = 3600.0
"""A run may take long; its session's own limits (--time-limit, --cell-timeout) are what bounds it."""

PROSE_WARNING = "the root model did not call FINAL; what it said last was taken as its answer"

STOPPED = "the session was stopped"

_KIND_OF = {"BudgetExceeded": "budget", "PolicyError": "policy", "ProviderError": "provider"}


@command(
    "run",
    epilog=examples(
        "rlm-sandbox run 'Which errors occur, and how often?' --input /var/log/syslog",
        "rlm-sandbox run 'Summarize this' --input notes.md --strategy map-reduce -o summary.md",
        "rlm-sandbox run 'Which sections contradict?' --input spec.md --strategy pairwise --format json",
        "rlm-sandbox run 'What changed after the deploy?' --input app.log --strategy agent --root-model claude-sonnet-5-5",
    ),
)
@click.argument("question")
@start_flags
@click.option(
    "--strategy",
    type=click.Choice(["auto", "filter", "map-reduce", "pairwise", "agent"]),
    default="auto",
    help="How: filter narrows by code first, map-reduce reads every chunk, pairwise compares sections, agent has a root model write the cells"
    " (default: filter for logs and for what is large, else map-reduce).",
)
@click.option(
    "--root-model", default=None, metavar="NAME", help="The agent's root model (default: the sub-calls' model)."
)
@click.option(
    "--max-steps",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Most turns of the root model (default 12).",
)
@click.option("-o", "target", default=None, metavar="FILE", help="Write the answer to a file instead of stdout.")
@click.option("--keep", is_flag=True, help="Leave the session running afterwards.")
@format_option
def run_command(
    question: str,
    strategy: str,
    root_model: str | None,
    max_steps: int | None,
    target: str | None,
    keep: bool,
    form: str | None,
    **options: Any,
) -> None:
    """Answer QUESTION over an input: start, run a strategy, print the answer, stop."""
    question = question.encode("utf-8", "surrogateescape").decode(
        "utf-8", "replace"
    )  # bytes of no text cannot be asked
    if target is not None and target != "-":
        _writable(target)
    printed = form or click.get_current_context().find_root().obj
    chosen(form)
    began = time.monotonic()
    agent: dict[str, Any] | None = None
    show = _progress()
    if strategy != "agent":
        options["cell_timeout"] = options.get("cell_timeout") or CELL_S
        if root_model is not None or max_steps is not None:
            raise UsageError("--root-model and --max-steps are the agent's", hint="add --strategy agent")
    asked_for = options.get("budget")
    options["new"] = True  # a run is over soon, and nobody's to go on with
    arguments = request.start_arguments(options.pop("input_path"), question=question, **options)
    with _session(arguments, show, keep=keep) as started:
        strategy = _resolve(strategy, started)
        output.note(
            f"[rlm] {started['provider']} {started['model']}, strategy {strategy}, session {started['session']}"
        )
        if strategy == "agent":
            from rlm_sandbox.cli.agent import by_agent  # noqa: PLC0415 - only this strategy needs it

            done, agent = by_agent(question, started, root_model=root_model, max_steps=max_steps, show=show)
        else:
            program = _program(strategy, question, calls=asked_for, local=started["provider"] == "local")
            done = client.call("exec", {"session": started["session"]}, program, progress=show)
        if show is not None:
            show({"done": True})
        _check(done)
        _check_calls(started)
        answer = _final(started["session"])
    document = {
        "format_version": 1,
        "session": started["session"],
        "answer": answer.decode("utf-8", "replace"),
        "question": question,
        "strategy": strategy,
        "provider": started["provider"],
        "model": started["model"],
        "budget": done["budget"],
        "warnings": done["warnings"] + ([PROSE_WARNING] if agent and agent["ended"] == "prose" else []),
        "agent": agent,
        "elapsed_ms": round(1000 * (time.monotonic() - began)),
    }
    if target is not None and target != "-":
        _save(target, answer, started["session"])
    if printed is not None:
        output.document(document, printed, "run")
        return
    if target is None or target == "-":
        output.raw(answer if answer.endswith(b"\n") else answer + b"\n")
    output.note(f"[rlm] {_spent(done['budget'])}, {document['elapsed_ms'] / 1000:.1f} s")


def _progress() -> Callable[[dict[str, Any]], None] | None:
    if not sys.stderr.isatty() or not settings.colour_allowed():
        return None
    from rlm_sandbox.cli.progress import Bar  # noqa: PLC0415 - rich is only for people

    return Bar()


@contextlib.contextmanager
def _session(
    arguments: dict[str, Any], show: Callable[[dict[str, Any]], None] | None, *, keep: bool
) -> Iterator[dict[str, Any]]:
    started = client.call("start", arguments, progress=show)
    try:
        yield started
    except KeyboardInterrupt as exc:
        hint = f"the session goes on: rlm-sandbox status --session {started['session']}" if keep else STOPPED
        raise InterruptedByUser("interrupted", hint=hint) from exc
    finally:
        if not keep:
            for number in (signal.SIGINT, signal.SIGTERM):  # an impatient second one would leave the session running
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(RLMError):
                client.call("stop", {"session": started["session"]}, spawn=False)


def _resolve(strategy: str, started: dict[str, Any]) -> str:
    if strategy != "auto":
        return strategy
    if started["context_total_bytes"] > AUTO_MAP_BYTES or is_log(started["context_prefix"]):
        return "filter"
    return "map-reduce"


def is_log(beginning: str) -> bool:
    """Tell whether a text begins like a log: most of its first lines have a time or a level. Of a log, code counts what models would guess."""
    lines = [line for line in beginning.splitlines() if line.strip()]
    whole = lines[:-1] or lines
    return bool(whole) and 2 * sum(_LOGGED.search(line) is not None for line in whole) > len(whole)


def _program(strategy: str, question: str, *, calls: int | None, local: bool) -> bytes:
    """Return the strategy's cell. Whoever says how many calls there may be has them planned with."""
    from rlm_sandbox import strategies  # noqa: PLC0415 - only this command needs it

    most = strategies.MAX_CALLS if calls is None else calls
    size = strategies.LOCAL_PIECE_CHARS if local else strategies.PIECE_CHARS
    return strategies.load(strategy, question=question, max_calls=most, piece_chars=size).encode()


def _check(done: dict[str, Any]) -> None:
    """Turn a failed cell into the failure it stands for."""
    if done["status"] == "ok" and done["final"] is None:
        raise InternalError("the strategy ended without an answer", hint="please report this as a bug")
    if done["final"] is not None:
        return
    last = (done["error"] or done["status"]).strip().splitlines()[-1]
    if done["status"] in {"timeout", "interrupted"}:
        raise DeadlineError(
            f"the run did not finish: {done['status']}", hint="raise --cell-timeout, or narrow the question"
        )
    name, _, text = last.partition(": ")
    kind = _KIND_OF.get(name.rpartition(".")[2])
    if kind is not None:
        # A cell's own advice is for whoever has a session to go on with.
        raise from_kind(kind, re.sub(r" \(raise [^()]*\)$", "", text) or name, _HINTS[kind])
    raise InternalError(
        f"the strategy failed: {last}", hint="try another --strategy, or write cells yourself with exec"
    )


def _check_calls(started: dict[str, Any]) -> None:
    """A report without a single answer is no answer: when the provider refused every call, say what it said, and end so."""
    named = {"session": started["session"]}
    attempts = client.call("budget_history", named, spawn=False)["calls"]
    outcomes = [attempt["outcome"] for attempt in attempts]
    if not outcomes or any(str(outcome).startswith("ok") for outcome in outcomes):
        return
    code = str(outcomes[-1])
    raise ProviderError(
        f"{started['provider']} answered none of {len(outcomes)} calls of {started['model']}: {code.replace('_', ' ')}",
        hint=_REFUSALS.get(code, _HINTS["provider"]),
        code=code,
    )


_REFUSALS = {
    "authentication": "the key is not valid: check ANTHROPIC_API_KEY, OPENAI_API_KEY or LLM_API_KEY, and that the base URL belongs to it",
    "permission": "the key may not use this model: choose another with --model",
    "not_found": "the provider knows no such model: choose another with --model",
    "billing": "the account cannot pay: see the provider's console",
    "unreachable": "the provider cannot be reached: check the network and the base URL, or use --provider local",
}

_HINTS = {
    "budget": "raise --budget, --token-limit or --cost-limit, or narrow the question",
    "policy": "allow the model with --allow-model, or ask whoever keeps the policy file",
    "provider": "check the key, the base URL and the model's name",
}


def _final(session: str) -> bytes:
    pieces: list[bytes] = []
    client.call("final", {"session": session}, spawn=False, data=pieces.append)
    return b"".join(pieces)


def _writable(target: str) -> None:
    """Say before anything is paid for that an answer could not be written there; nothing is made or changed."""
    folder = os.path.dirname(target) or "."  # noqa: PTH120 - pathlib is not needed otherwise
    cause = None
    if os.path.isdir(target):  # noqa: PTH112
        cause = errno.EISDIR
    elif not os.path.isdir(folder):  # noqa: PTH112
        cause = errno.ENOENT
    elif not os.access(target if os.path.exists(target) else folder, os.W_OK):  # noqa: PTH110
        cause = errno.EACCES
    if cause is not None:
        raise UsageError(f"{target}: {os.strerror(cause)}", hint="name a file that can be written")


def _save(target: str, answer: bytes, session: str) -> None:
    try:
        with open(target, "wb") as stream:  # noqa: PTH123 - pathlib is not needed otherwise
            stream.write(answer)
    except OSError as exc:
        hint = f"the answer is kept: rlm-sandbox final --session {session} -o FILE"
        raise UsageError(f"{target}: {exc.strerror}", hint=hint) from exc


def _spent(budget: dict[str, Any]) -> str:
    limit = "-" if budget["limit"] is None else budget["limit"]
    return (
        f"calls {budget['calls']}/{limit}, tokens {budget['tokens_in']} in {budget['tokens_out']} out, "
        f"cost ${budget['cost_usd']:.4f}"
    )
