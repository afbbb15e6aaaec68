"""Other implementations of the same method, if they are there: how long they take to start on an input and to run a cell that does nothing."""

import importlib.util
import json
import shlex
import subprocess
import tempfile
from pathlib import Path

from measure import seconds, summary

LARGEST = 2**30
"""Peers read their input into memory, several times over: beyond this they are not asked."""


def measure(inputs, named):
    """``named`` are ``NAME=COMMAND``: programs with ``start --input PATH`` and ``exec`` (code on stdin), as rlm-skill has them."""
    report = {}
    paths = {name: path for name, path in inputs.paths.items() if path.stat().st_size <= LARGEST}
    for each in named:
        name, _, words = each.partition("=")
        report[name] = {size: program(shlex.split(words), path) for size, path in paths.items()}
    if importlib.util.find_spec("rlm") is not None:
        report["rlms (local, no isolation)"] = {size: official(path) for size, path in paths.items()}
    return report


def program(words, path):
    with tempfile.TemporaryDirectory() as folder:
        started, out = seconds(lambda: quiet([*words, "start", "--input", str(path)], folder))
        session = json.loads(out).get("session") if out.lstrip().startswith(b"{") else None
        name = ["--session", session] if session else []
        cells = [seconds(lambda: quiet([*words, "exec", *name], folder, b"x = 1"))[0] for _ in range(3)]
    return {"start_ms": round(1000 * started, 1), "exec_ms": summary([1000 * each for each in cells])}


def quiet(words, folder, stdin=None):
    return subprocess.run(words, input=stdin, check=True, capture_output=True, cwd=folder).stdout


def official(path):
    from rlm.environments.local_repl import LocalREPL  # noqa: PLC0415 - a peer that may not be there

    started, repl = seconds(lambda: LocalREPL(context_payload=Path(path).read_text(errors="replace")))
    try:
        cells = [seconds(lambda: repl.execute_code("x = 1"))[0] for _ in range(3)]
    finally:
        repl.cleanup()
    return {"start_ms": round(1000 * started, 1), "exec_ms": summary([1000 * each for each in cells])}
