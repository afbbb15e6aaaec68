"""The demo: one question over a large log, answered in a sandbox, with the proof beside the answer.

Everything goes through the command line as a user would call it. Without an input a log with planted incidents is generated, and the
report's counts are held against what was planted; the demo fails if one is wrong.

    python -m rlm_sandbox.demo [--input PATH] [--question TEXT]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlm_sandbox.demo.loggen import FULL_SIZE, MEGABYTE, generate, read_truth, truth_path
from rlm_sandbox.demo.report import Check, compare
from rlm_sandbox.doctor.deep import source as attacks_source
from rlm_sandbox.sanitize import one_line, visible

FOLDER = Path(".demo")
QUESTION = "Which incidents happened, and how often?"

ATTACKS = (
    "tcp",
    "name resolution",
    "unix socket",
    "docker socket",
    "write to /",
    "write to the input",
    "a shell",
    "run a file from /tmp",
    "mount",
    "user namespace by unshare",
    "environment of process 1",
    "a key in the environment",
)
"""A dozen of the attacks that ``rlm-sandbox doctor --deep`` makes, as a taste."""


class Failed(Exception):  # noqa: N818 - the command has said why already
    """A command of the product failed; ``code`` is what it ended with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="Answer a question over a large log in a sandbox.")
    parser.add_argument("--input", type=Path, help="a file or directory of your own")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument(
        "--provider", help="who answers sub-calls (default: local for the generated log, else as `run` chooses)"
    )
    parser.add_argument("--size-mb", type=int, default=FULL_SIZE // MEGABYTE, help="size of the generated log")
    options = parser.parse_args()
    try:
        return _demo(options.input, options.question, options.provider, options.size_mb)
    except Failed as failed:
        return failed.code


def _demo(given: Path | None, question: str, provider: str | None, size_mb: int) -> int:
    log = given or _generated(size_mb)
    provider = provider or (None if given else "local")
    chosen = ["--provider", provider] if provider else []
    done = _product("run", question, "--input", str(log), "--strategy", "filter", *chosen)
    _say(visible(done["answer"]))
    checks = [] if given else compare(done["answer"], read_truth(log))
    if checks:
        _say(_planted(checks))
    _say(_spent(done))
    breached = _attacked(log)
    _say(f"answer: {one_line(done['answer'].splitlines()[0], 300)}")
    return 0 if all(check.right for check in checks) and not breached else 1


def _generated(size_mb: int) -> Path:
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / f"services-{size_mb}mb.log"
    if not truth_path(log).exists():  # written last, so its presence says that the log is whole
        _say(f"generating {log} ({size_mb} MB)", sys.stderr)
        generate(log, size=size_mb * MEGABYTE)
    return log


def _planted(checks: list[Check]) -> str:
    rows = ["What was planted, and what the report says:", ""]
    for check in checks:
        verdict = "right" if check.right else "WRONG"
        rows.append(
            f"  {verdict}  planted {check.planted.count:>5}  counted {check.counted!s:>5}  {check.planted.title}"
        )
    right = sum(check.right for check in checks)
    return "\n".join([*rows, "", f"{right} of {len(checks)} incidents counted exactly.", ""])


def _spent(done: dict[str, Any]) -> str:
    budget = done["budget"]
    return (
        f"budget: {budget['calls']} of {budget['limit']} calls, {budget['tokens_in']} tokens in, {budget['tokens_out']} out, "
        f"${budget['cost_usd']:.4f}; {done['provider']} {done['model']}; {done['elapsed_ms'] / 1000:.1f} s\n"
    )


def _attacked(log: Path) -> list[str]:
    """Try to break out of a session on the same input; print what became of it and return what got through."""
    session = _product("start", "--input", str(log), "--provider", "scripted", "--budget", "0")["session"]
    try:
        code = attacks_source() + "".join(f"\nattack({name!r})" for name in ATTACKS)
        stdout = _product("exec", "--session", session, code=code)["stdout"]
    finally:
        _product("stop", "--session", session)
    verdicts = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    breached = [verdict["attack"] for verdict in verdicts if verdict["breached"]]
    missing = sorted(set(ATTACKS) - {verdict["attack"] for verdict in verdicts})
    _say("What code in the sandbox tried, and what it got:\n")
    for verdict in verdicts:
        outcome = "GOT THROUGH" if verdict["breached"] else "denied"
        _say(f"  {outcome:<12} {verdict['attack']:<28} {one_line(verdict['seen'], 60)}")
    _say("\nAll of them, on your engine: rlm-sandbox doctor --deep\n")
    return breached + missing


def _product(*words: str, code: str | None = None) -> dict[str, Any]:
    """Call the command line and return its document; its messages and progress go to our own standard error."""
    command = [sys.executable, "-m", "rlm_sandbox", *words, "--format", "json"]
    done = subprocess.run(command, input=code, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise Failed(done.returncode)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _say(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
