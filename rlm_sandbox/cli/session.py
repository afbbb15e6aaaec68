"""The commands around one session: start it, run cells, read the answer, end it."""

from __future__ import annotations

from typing import Any

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import cells, output
from rlm_sandbox.cli.common import chosen, command, examples, format_option, session_option
from rlm_sandbox.daemon import client, request
from rlm_sandbox.errors import NoSuchSession, UsageError
from rlm_sandbox.sanitize import one_line


def start_flags(function: Any) -> Any:
    """Add the options that describe a session; ``run`` takes them too."""
    for option in reversed(_START_OPTIONS):
        function = option(function)
    return function


_START_OPTIONS = [
    click.option("--input", "input_path", required=True, metavar="PATH", help="A file or a directory."),
    click.option(
        "--glob",
        default=None,
        metavar="PATTERNS",
        help="Only these files of a directory: '*.py,*.md' (gitignore syntax).",
    ),
    click.option("--exclude", default=None, metavar="PATTERNS", help="Leave these files out (gitignore syntax)."),
    click.option(
        "--session", default=None, metavar="ID", help="A name of your own; an ended session of that name is reopened."
    ),
    click.option("--fresh", is_flag=True, help="Reopen without the variables of the cells before."),
    click.option(
        "--clock",
        type=click.Choice(["real", "frozen"]),
        default=None,
        help="What time it is in cells: real (default), or frozen at the first start, so that a replay sees the same.",
    ),
    click.option("--snapshot", is_flag=True, help="Copy a file first, so that it cannot change under the session."),
    click.option("--bind", is_flag=True, help="Mount a directory as it is instead of staging the admitted files."),
    click.option("--new", is_flag=True, help="Say nothing of a session that is live on the same input."),
    click.option(
        "--provider",
        default=None,
        help="anthropic, openai, local or scripted (default: by the key that is set, else local).",
    ),
    click.option("--model", default=None, help="The model for sub-calls."),
    click.option(
        "--allow-model", multiple=True, metavar="NAME", help="A further model that cells may name; repeatable."
    ),
    click.option(
        "--budget", type=click.IntRange(min=0), default=None, metavar="N", help="Most sub-calls (default 100)."
    ),
    click.option(
        "--token-limit",
        type=click.IntRange(min=0),
        default=None,
        metavar="N",
        help="Most tokens, in and out (default: none).",
    ),
    click.option(
        "--token-warning", type=click.IntRange(min=0), default=None, metavar="N", help="Warn once at so many tokens."
    ),
    click.option(
        "--cost-limit", type=click.FloatRange(min=0), default=None, metavar="USD", help="Most money (default: none)."
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        metavar="S",
        help="Seconds until the session ends.",
    ),
    click.option(
        "--concurrency", type=click.IntRange(min=1), default=None, metavar="N", help="Sub-calls at once (default 20)."
    ),
    click.option(
        "--cache-scope", default=None, metavar="NAME", help="Share cached answers with other sessions of this scope."
    ),
    click.option("--image", default=None, metavar="base|data|REF", help="The guest image (default base)."),
    click.option("--runtime", default=None, metavar="NAME", help="A stronger container runtime: runsc, kata, ..."),
    click.option("--memory", default=None, metavar="SIZE", help="Memory of the container, e.g. 512m (default 2g)."),
    click.option(
        "--cpus",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        metavar="N",
        help="CPUs of the container (default 2).",
    ),
    click.option(
        "--pids", type=click.IntRange(min=16), default=None, metavar="N", help="Processes and threads (default 640)."
    ),
    click.option(
        "--tmpfs",
        default=None,
        metavar="SIZE",
        help="Scratch space in /tmp, and the most of one file (default 256m, an eighth of the memory at most).",
    ),
    click.option(
        "--tmpfs-files", type=click.IntRange(min=64), default=None, metavar="N", help="Files in /tmp (default 16384)."
    ),
    click.option("--shm", default=None, metavar="SIZE", help="Shared memory in /dev/shm (default 64m)."),
    click.option(
        "--open-files",
        type=click.IntRange(min=64),
        default=None,
        metavar="N",
        help="Open files of a process (default 1024).",
    ),
    click.option(
        "--output-max", default=None, metavar="SIZE", help="Output of one cell that is kept on disk (default 64m)."
    ),
    click.option(
        "--cell-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        metavar="S",
        help="Seconds a cell may take (default 600).",
    ),
    click.option(
        "--idle-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        metavar="S",
        help="Seconds unused until the session ends (default 3600).",
    ),
]


@command(
    "start",
    epilog=examples(
        "rlm-sandbox start --input /var/log/syslog",
        "rlm-sandbox start --input . --glob '*.py,*.md' --exclude 'tests/' --budget 50",
        "rlm-sandbox start --input big.log --provider local --memory 1g --cost-limit 0.50",
    ),
)
@start_flags
@format_option
def start_command(form: str | None, **options: Any) -> None:
    """Start a session on a file or directory and print what it holds."""
    form = chosen(form)
    arguments = request.start_arguments(options.pop("input_path"), **options)
    output.document(client.call("start", arguments, progress=cells.live(True)), form, "started")


wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=None,
    metavar="S",
    help="Seconds to wait for the result; then the status is 'running' and the cell goes on (default 100 or RLM_WAIT, and at least --timeout).",
)


@command(
    "exec",
    epilog=examples(
        "rlm-sandbox exec -c 'print(context[:200])'",
        "rlm-sandbox exec --session ID -f cell.py --timeout 300",
        "echo 'hits = grep(\"ERROR\"); print(len(hits))' | rlm-sandbox exec --format text",
    ),
)
@session_option
@click.option("-c", "code", default=None, metavar="CODE", help="The code itself.")
@click.option("-f", "file", default=None, metavar="FILE", help="A file of code ('-': standard input, the default).")
@click.option("--timeout", type=float, default=None, metavar="S", help="Seconds this cell may take.")
@wait_option
@format_option
def exec_command(
    session: str | None,
    code: str | None,
    file: str | None,
    timeout: float | None,
    wait_s: float | None,
    form: str | None,
) -> None:
    """Run Python in the session; names live on between cells."""
    cells.execute(session=session, code=code, file=file, timeout=timeout, wait_s=wait_s, form=chosen(form))


@command("wait", epilog=examples("rlm-sandbox wait", "rlm-sandbox wait --session ID --wait 60"))
@session_option
@wait_option
@format_option
def wait_command(session: str | None, wait_s: float | None, form: str | None) -> None:
    """Wait for the running cell and print its result, or the last one's."""
    _poll("wait", session, wait_s, form)


@command("interrupt", epilog=examples("rlm-sandbox interrupt", "rlm-sandbox interrupt --session ID"))
@session_option
@wait_option
@format_option
def interrupt_command(session: str | None, wait_s: float | None, form: str | None) -> None:
    """Interrupt the running cell as Ctrl-C would and print its result."""
    _poll("interrupt", session, wait_s, form)


def _poll(op: str, session: str | None, wait_s: float | None, form: str | None) -> None:
    form = chosen(form)
    arguments = {
        "session": session,
        "wait": settings.default_wait() if wait_s is None else wait_s,
        "stdout_max": settings.stdout_max(),
        "stdout_default": settings.stdout_default(form),
    }
    output.document(client.call(op, arguments, spawn=False, progress=cells.live(True)), form, "executed")


@command("final", epilog=examples("rlm-sandbox final", "rlm-sandbox final --session ID -o report.md"))
@session_option
@click.option("-o", "target", default=None, metavar="FILE", help="Write the answer to a file instead of stdout.")
@format_option
def final_command(session: str | None, target: str | None, form: str | None) -> None:
    """Print the final answer: its bytes, nothing added; as text, a bounded view of it. With -o, a document that says where it is."""
    form = chosen(form)
    answer = _final_bytes(session)
    if target is None or target == "-":
        if form == "text":
            output.document({"answer": answer.decode("utf-8", "replace")}, form, "final")
        else:
            output.raw(answer)
        return
    try:
        with open(target, "wb") as stream:  # noqa: PTH123 - pathlib is not needed otherwise
            stream.write(answer)
    except OSError as exc:
        raise UsageError(f"{target}: {exc.strerror}", hint="name a file that can be written") from exc
    output.document({"format_version": 1, "saved_to": one_line(target), "bytes": len(answer)}, form, "saved")


def _final_bytes(session: str | None) -> bytes:
    pieces: list[bytes] = []
    try:
        client.call("final", {"session": session, "root": settings.session_root()}, spawn=False, data=pieces.append)
    except NoSuchSession:
        if session is None or _daemon_runs():
            raise
        from rlm_sandbox.session.places import kept_final  # noqa: PLC0415 - the daemon is gone: read what it left

        return kept_final(settings.home(), session, settings.session_root())
    return b"".join(pieces)


def _daemon_runs() -> bool:
    connection = client.connect(settings.home())
    if connection is None:
        return False
    connection.close()
    return True


@command("status", epilog=examples("rlm-sandbox status", "rlm-sandbox status --session ID"))
@session_option
@format_option
def status_command(session: str | None, form: str | None) -> None:
    """Show a session: what runs, its variables, final answer and budget."""
    form = chosen(form)
    output.document(client.call("status", {"session": session}, spawn=False), form, "status")


@command("list", epilog=examples("rlm-sandbox list", "rlm-sandbox list --format text"))
@format_option
def list_command(form: str | None) -> None:
    """List the live sessions."""
    form = chosen(form)
    try:
        found = client.call("list", {}, spawn=False)
    except NoSuchSession:
        found = {"format_version": 1, "sessions": []}
    output.document(found, form, "sessions")


@command("stop", epilog=examples("rlm-sandbox stop", "rlm-sandbox stop --session ID", "rlm-sandbox stop --all"))
@session_option
@click.option("--all", "everything", is_flag=True, help="Stop every session.")
@format_option
def stop_command(session: str | None, everything: bool, form: str | None) -> None:
    """End a session; its answer, budget and cached answers stay. Stopping one that is not live is no error."""
    form = chosen(form)
    if session is not None and everything:
        raise UsageError("--session and --all exclude each other", hint="choose one")
    try:
        stopped = client.call("stop", {"session": session, "all": everything}, spawn=False)
    except NoSuchSession:
        if _daemon_runs():
            raise
        name = None if everything or session is None else one_line(session, 128)
        stopped = {"format_version": 1, "stopped": name or [], "was_live": False}
    output.document(stopped, form, "stopped")


@command("gc", epilog=examples("rlm-sandbox gc", "rlm-sandbox gc --older-than 30 --max-size 10g"))
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=None,
    metavar="DAYS",
    help="Also forget runs that were not used for so long.",
)
@click.option(
    "--max-size",
    default=None,
    metavar="SIZE",
    help="Also forget the oldest runs until the rest takes no more than this.",
)
@format_option
def gc_command(older_than: float | None, max_size: str | None, form: str | None) -> None:
    """Remove containers and staged inputs that no live session owns; where asked, forget old runs."""
    form = chosen(form)
    size = None
    if max_size is not None:
        from rlm_sandbox.settings.model import parse_size  # noqa: PLC0415 - heavy, and rarely needed

        size = parse_size(max_size)
        if not isinstance(size, int):
            raise UsageError(f"--max-size {max_size[:40]} is no size", hint="for example --max-size 10g")
    arguments = {"engine": settings.engine_variables(), "older_than": older_than, "max_size": size}
    output.document(client.call("gc", arguments), form, "collected")
