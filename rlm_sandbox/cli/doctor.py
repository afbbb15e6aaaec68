"""The ``doctor`` command: what is wrong with this host, and whether the sandbox holds on it."""

from __future__ import annotations

import sys

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, command, examples, format_option
from rlm_sandbox.errors import PrerequisiteError


@command(
    "doctor",
    epilog=examples(
        "rlm-sandbox doctor", "rlm-sandbox doctor --deep", "rlm-sandbox doctor --deep --runtime runsc --json"
    ),
)
@click.option("--deep", is_flag=True, help="Attack a throwaway session and show what was seen.")
@click.option("--runtime", default=None, metavar="NAME", help="The runtime to attack (with --deep).")
@click.option("--image", default=None, metavar="base|data|REF", help="The image to attack (with --deep).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON even on a terminal.")
@format_option
def doctor_command(deep: bool, runtime: str | None, image: str | None, as_json: bool, form: str | None) -> None:
    """Check this host; exit 3 when sessions cannot start or an attack got through."""
    asked = form or click.get_current_context().find_root().obj
    form = chosen(form)
    table = not as_json and (asked == "text" or (asked is None and sys.stdout.isatty()))
    from rlm_sandbox.doctor import checks  # noqa: PLC0415 - heavy

    findings = checks.run(settings.home(), settings.client_environment(), settings.engine_host())
    document = {"format_version": 1, **checks.document(findings)}
    if deep and document["ok"]:
        from rlm_sandbox.daemon import client  # noqa: PLC0415 - only for this
        from rlm_sandbox.doctor import deep as attacked  # noqa: PLC0415 - only for this

        document.update(attacked.document(attacked.run(client.call, runtime=runtime, image=image)))
    output.document(document, "text" if table else "json", "doctor")
    breached = document.get("breached") or []
    if breached:
        raise click.exceptions.Exit(
            _fail(f"{len(breached)} attacks got through: {', '.join(breached)}", "do not run untrusted code here")
        )
    if not document["ok"]:
        failed = next(finding for finding in findings if finding.level == "fail")
        raise click.exceptions.Exit(_fail(f"{failed.check}: {failed.detail}", failed.fix))


def _fail(message: str, fix: str) -> int:
    output.note(f"rlm-sandbox: prerequisite: {message} ({fix})")
    return PrerequisiteError.exit_code
