"""The commands around records of runs: bring one back, hand it on, check it, run it again, look at it, be rid of it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, command, examples, format_option, session_option
from rlm_sandbox.daemon import client
from rlm_sandbox.errors import BundleError, DivergenceError, NoSuchSession, UsageError
from rlm_sandbox.sanitize import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.record.recording import Recording


def _say(text: str) -> None:
    if sys.stderr.isatty():
        output.note(f"[rlm] {text}")


def _progress(document: dict[str, Any]) -> None:
    if "message" in document:
        _say(str(document["message"]))


def _size(value: str | None, option: str, default: int) -> int:
    from rlm_sandbox.settings.model import parse_size  # noqa: PLC0415 - heavy, and rarely needed

    size = default if value is None else parse_size(value)
    if not isinstance(size, int):
        raise UsageError(f"{option} {value[:40] if value else ''} is no size", hint=f"for example {option} 2g")
    return size


@contextmanager
def _opened(what: str, max_size: str | None) -> Iterator[Recording]:
    from rlm_sandbox.record import archive, recording  # noqa: PLC0415 - heavy

    limit = _size(max_size, "--max-size", archive.UNPACKED_MAX)
    with recording.opened(settings.home(), what, unpacked_max=limit, named=settings.session_root()) as found:
        yield found


def _latest(session: str | None) -> str:
    if session is not None:
        return session
    from rlm_sandbox.daemon.record_ops import latest  # noqa: PLC0415 - heavy

    return latest(settings.home(), None, settings.session_root())


max_size_option = click.option(
    "--max-size", default=None, metavar="SIZE", help="How much a bundle may unpack to (default 4g)."
)
output_option = click.option("-o", "target", required=True, metavar="FILE", help="Where to write it.")


@command(
    "resume",
    epilog=examples(
        "rlm-sandbox resume",
        "rlm-sandbox resume --session ID",
        "rlm-sandbox resume --session ID --from-cell 4",
    ),
)
@session_option
@click.option(
    "--from-cell", type=click.IntRange(min=1), default=None, metavar="N", help="Leave out this cell and all after it."
)
@click.option("--live", is_flag=True, help="Buy what cells ask beyond their record, instead of stopping there.")
@format_option
def resume_command(session: str | None, from_cell: int | None, live: bool, form: str | None) -> int:
    """Bring back a session that ended or whose host died: its cells run again, answered from the record, nothing is bought.

    Exits with 10 when a cell left its record; the session is then live with what was restored until there.
    """
    form = chosen(form)
    arguments = {
        "session": session,
        "before": from_cell,
        "buy": live,
        "environment": settings.client_environment(),
        "engine": settings.engine_variables(),
    }
    document = client.call("resume", arguments, progress=_progress)
    output.document(document, form, "started")
    return _parted(document["divergence"])


@command(
    "export",
    epilog=examples(
        "rlm-sandbox export -o run.rlm",
        "rlm-sandbox export --session ID -o run.rlm --include-input",
        "rlm-sandbox export --session ID -o run.rlm --redact --sign-key ~/.ssh/id_ed25519",
    ),
)
@session_option
@output_option
@click.option("--include-input", is_flag=True, help="Put the input in, so that the run can be replayed anywhere.")
@click.option("--redact", is_flag=True, help="No text: prompts, answers, code and names by their digests only.")
@click.option("--sign-key", default=None, metavar="FILE", help="Sign with this SSH key (through ssh-keygen).")
@format_option
def export_command(
    session: str | None, target: str, include_input: bool, redact: bool, sign_key: str | None, form: str | None
) -> None:
    """Write a session's record to one file: journal, texts, answer, summary and an in-toto statement. Never a key."""
    form = chosen(form)
    arguments = {
        "session": session,
        "target": _file_named(target),
        "include_input": include_input,
        "redact": redact,
        "sign_key": None if sign_key is None else os.path.abspath(os.path.expanduser(sign_key)),  # noqa: PTH100, PTH111 - as above
        "environment": settings.client_environment(),
    }
    if client.connect(settings.home()) is not None:
        document = client.call("export", arguments, spawn=False, progress=_progress)
    else:
        document = _export_here(arguments)
    output.document(document, form, "exported")


def _export_here(arguments: dict[str, Any]) -> dict[str, Any]:
    """No daemon runs, so no session is live: the record lies still."""
    from rlm_sandbox.daemon.record_ops import export_folder, secrets_of  # noqa: PLC0415 - heavy
    from rlm_sandbox.record.export import Options  # noqa: PLC0415
    from rlm_sandbox.record.recording import folder_of  # noqa: PLC0415

    key = arguments["sign_key"]
    options = Options(
        redact=arguments["redact"],
        include_input=arguments["include_input"],
        sign_key=None if key is None else Path(key),
        secrets=secrets_of(arguments["environment"]),
    )
    folder = folder_of(settings.home(), _latest(arguments["session"]), settings.session_root())
    return export_folder(folder, Path(arguments["target"]), options)


@command(
    "verify",
    epilog=examples("rlm-sandbox verify run.rlm", "rlm-sandbox verify run.rlm --signers ~/.ssh/allowed_signers"),
)
@click.argument("file")
@click.option(
    "--signers",
    default=None,
    metavar="FILE",
    help="Require a signature by one of these (see ALLOWED SIGNERS in ssh-keygen(1)).",
)
@max_size_option
@format_option
def verify_command(file: str, signers: str | None, max_size: str | None, form: str | None) -> None:
    """Check a bundle: every byte, the journal's chain, every text against its digest, the statement, the signature."""
    form = chosen(form)
    from rlm_sandbox.record import archive, bundle  # noqa: PLC0415 - heavy

    if signers is not None and not Path(signers).is_file():
        raise UsageError(f"{signers}: no such file", hint="name a file of allowed signers")
    limit = _size(max_size, "--max-size", archive.UNPACKED_MAX)
    found = bundle.verify(Path(file), unpacked_max=limit, signers=None if signers is None else Path(signers))
    output.document(found.document(Path(file)), form, "verified")


@command(
    "replay",
    epilog=examples(
        "rlm-sandbox replay run.rlm",
        "rlm-sandbox replay run.rlm --input /var/log/syslog -o answer.txt",
        "rlm-sandbox replay run.rlm --against claude-sonnet-5-5 --cost-limit 1",
    ),
)
@click.argument("what", metavar="FILE|SESSION")
@click.option("-o", "target", default=None, metavar="FILE", help="Write the replay's final answer to a file.")
@click.option("--input", "input_path", default=None, metavar="PATH", help="Where the input lies, if not where it was.")
@click.option("--against", default=None, metavar="MODEL", help="Run it live with another model instead, and compare.")
@click.option(
    "--provider", default=None, help="With --against: the provider of that model (default: the recorded one)."
)
@click.option("--budget", type=click.IntRange(min=0), default=None, metavar="N", help="With --against: most sub-calls.")
@click.option(
    "--cost-limit", type=click.FloatRange(min=0), default=None, metavar="USD", help="With --against: most money."
)
@max_size_option
@format_option
def replay_command(
    what: str, target: str | None, input_path: str | None, against: str | None, max_size: str | None, form: str | None,
    **live: Any,
) -> int:  # fmt: skip
    """Run a record again in a fresh locked container, offline and without a key, and compare every cell and the answer.

    Exits with 10 and names the first difference when there is one.
    """
    form = chosen(form)
    with _opened(what, max_size) as recording:
        if recording.redacted:
            raise BundleError("this bundle is redacted: it holds no code to run", hint="export it without --redact")
        with _input(recording, input_path) as source:
            if against is not None:
                from rlm_sandbox.record.against import run_against  # noqa: PLC0415 - rare

                document, final = run_against(recording, source, against, live, _progress)
            else:
                document, final = _replay(recording, source)
    if target is not None and final is not None:
        _save(target, final)
    output.document(document, form, "replayed" if against is None else "diff")
    return _parted(document.get("divergence"))


def _parted(found: dict[str, Any] | None) -> int:
    """Say in one line where a record was left, and return the exit code; the document on stdout has it in parts."""
    if found is None:
        return 0
    output.note(f"rlm-sandbox: divergence: {one_line(found['text'], 1000)}")
    return DivergenceError.exit_code


@contextmanager
def _input(recording: Recording, named: str | None) -> Iterator[Path]:
    """Yield where the input of a replay lies: as named, in the bundle, or where it was."""
    import tempfile  # noqa: PLC0415 - rare

    from rlm_sandbox.record.bundle import materialise  # noqa: PLC0415 - heavy

    start = recording.past.latest
    if start is None:
        raise UsageError("this record holds no run", hint="export a session in which cells have run")
    if named is not None:
        yield Path(named).absolute()
    elif recording.inputs is not None:
        with tempfile.TemporaryDirectory(prefix="input-", dir=recording.inputs.parent) as folder:
            yield materialise(recording.past, recording.inputs, recording.read, Path(folder) / "put")
    elif Path(start.input.display).exists():
        yield Path(start.input.display)
    else:
        raise UsageError(
            f"the input {start.input.display} is not here, and not in the bundle",
            hint="name it with --input PATH, or export with --include-input",
        )


def _replay(recording: Recording, source: Path) -> tuple[dict[str, Any], bytes | None]:
    import asyncio  # noqa: PLC0415 - heavy

    from rlm_sandbox.sanitize import visible  # noqa: PLC0415
    from rlm_sandbox.session.replay import replay  # noqa: PLC0415

    past = recording.past
    done = asyncio.run(replay(past, recording.read, source, home=settings.home(), progress=_say))
    found = done.divergence
    return {
        "format_version": 1,
        "session": past.latest.session if past.latest else None,
        "identical": found is None,
        "final_sha256": done.final_sha256,
        "recorded_final_sha256": past.final.digest if past.final else None,
        "divergence": None
        if found is None
        else {
            "cell": found.cell or None,
            "call": found.call,
            "field": done.differs,
            "what": visible(found.what),
            "text": visible(str(found)),
        },
        "cells": done.cells,
        "calls": done.calls,
        "image": {
            "recorded": past.latest.image.id if past.latest else None,
            "used": done.image,
            "same": past.latest is not None and done.image == past.latest.image.id,
        },
        "warnings": [visible(note) for note in done.notes],
        "elapsed_ms": done.elapsed_ms,
    }, done.final


def _file_named(target: str) -> str:
    """Return an absolute path: the daemon stands elsewhere, and has no standard output of ours."""
    if target in {"", "-"}:
        raise UsageError("-o needs the name of a file", hint="for example -o run.rlm")
    return os.path.abspath(target)  # noqa: PTH100 - as it is named


def _save(target: str, data: bytes) -> None:
    try:
        Path(target).write_bytes(data)
    except OSError as exc:
        raise UsageError(f"{target}: {exc.strerror}", hint="name a file that can be written") from exc


@command(
    "report",
    epilog=examples(
        "rlm-sandbox report ID -o report.html",
        "rlm-sandbox report run.rlm -o report.html",
        "rlm-sandbox report run.rlm --format inspect -o run.json",
        "rlm-sandbox report run.rlm --format otel -o spans.json",
    ),
)
@click.argument("what", required=False, default=None, metavar="[SESSION|FILE]")
@click.option("--session", default=None, metavar="ID", help="The session (default: the one used last).")
@output_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["html", "inspect", "otel", "json", "text"]),
    default="html",
    help="A page (html, default), a log for inspect view, or OpenTelemetry spans; json and text are as elsewhere.",
)
@max_size_option
def report_command(what: str | None, session: str | None, target: str, kind: str, max_size: str | None) -> None:
    """Make a page of a run that needs nothing but a browser: no script, no network, every foreign text escaped."""
    form = chosen(kind if kind in {"json", "text"} else None)
    from rlm_sandbox.record import reports  # noqa: PLC0415 - heavy

    with _opened(what or _latest(session), max_size) as recording:
        data = reports.make(recording, "html" if kind in {"json", "text"} else kind)
        _save(_file_named(target), data)
        document: dict[str, Any] = {
            "format_version": 1,
            "session": recording.past.latest.session if recording.past.latest else None,
            "file": os.path.abspath(target),  # noqa: PTH100 - as it is named
            "kind": "html" if kind in {"json", "text"} else kind,
            "bytes": len(data),
            "cells": len(recording.past.cells),
            "calls": len(recording.past.calls),
            "warnings": [],
        }
    output.document(document, form, "report")


@command("diff", epilog=examples("rlm-sandbox diff ID OTHER", "rlm-sandbox diff monday.rlm tuesday.rlm --format text"))
@click.argument("one", metavar="SESSION|FILE")
@click.argument("other", metavar="SESSION|FILE")
@max_size_option
@format_option
def diff_command(one: str, other: str, max_size: str | None, form: str | None) -> None:
    """Compare two runs: cells, calls, answers, cost. Differences are data: the exit code is 0."""
    form = chosen(form)
    from rlm_sandbox.record.diff import compare  # noqa: PLC0415 - heavy

    with _opened(one, max_size) as first, _opened(other, max_size) as second:
        output.document(compare(first, second), form, "diff")


@command(
    "history",
    epilog=examples("rlm-sandbox history", "rlm-sandbox history --find syslog", "rlm-sandbox history --limit 5"),
)
@click.option("--find", default=None, metavar="TEXT", help="Only runs with this in their name, input or question.")
@click.option("--limit", type=click.IntRange(min=1), default=50, metavar="N", help="At most so many (default 50).")
@format_option
def history_command(find: str | None, limit: int, form: str | None) -> None:
    """List the runs on record, the latest first."""
    form = chosen(form)
    from rlm_sandbox.record import history  # noqa: PLC0415 - heavy
    from rlm_sandbox.session import places  # noqa: PLC0415 - as above

    roots = places.roots(settings.home(), settings.session_root())
    found = [entry for entry in history.entries(*roots) if history.matches(entry, find)]
    shown = [entry.document() for entry in found[:limit]]
    output.document({"format_version": 1, "runs": shown, "total": len(found), "warnings": []}, form, "history")


@command("forget", epilog=examples("rlm-sandbox forget ID"))
@click.argument("name", metavar="SESSION", required=False, default=None)
@click.option("--session", default=None, metavar="ID", help="The session.")
@format_option
def forget_command(name: str | None, session: str | None, form: str | None) -> None:
    """Remove every trace of a session: record, answer, cached answers, its lines in the ledger. What was spent today stays counted."""
    form = chosen(form)
    if (name is None) == (session is None):
        raise UsageError("name one session", hint="rlm-sandbox forget ID")
    document = client.call("forget", {"session": name or session, "root": settings.session_root()})
    if not document["forgotten"]:
        raise NoSuchSession(f"no session {name or session} is on record", hint="see rlm-sandbox history")
    output.document(document, form, "forgotten")
