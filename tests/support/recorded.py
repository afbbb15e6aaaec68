"""A small run's record, written by the parts that write real ones, without a container."""

from __future__ import annotations

import asyncio
import hashlib
import json

from rlm_sandbox.broker.types import Answer, Budget, CallEvent, Phase, Position, Request, Usage
from rlm_sandbox.errors import ProviderError
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.recorder import Recorder

INPUT = b"one\ntwo\nthree\n"
SECRET = "sk-test-0123456789abcdef-this-is-a-sentinel-key"


def start_body(**changes):
    body = {
        "session": "s1",
        "question": None,
        "input": {
            "kind": "file",
            "display": "/data/app.log",
            "bytes": len(INPUT),
            "files": 1,
            "mode": "auto",
            "glob": None,
            "exclude": None,
            "mtime_ns": 1,
        },
        "image": {"name": "base", "id": "sha256:" + "a" * 64, "python": "3.11.7"},
        "runtime": "runc",
        "provider": "scripted",
        "model": "m-1",
        "profile": {"memory": 2**31, "cpus": 2.0, "seccomp_sha256": "b" * 64},
        "report": {"uid": 65534, "python": "3.11.7"},
        "settings": {"memory": 2**31, "image": "base", "clock": "real"},
        "go": {
            "session": "s1",
            "seed": 0,
            "clock": "real",
            "epoch": 1,
            "input": {"path": "/input/app.log", "name": "app.log"},
        },
        "versions": {"rlm-sandbox": "0.1.0"},
        "reopened": False,
    }
    return {**body, **changes}


class Payer:
    """Answers every prompt; a prompt that begins with ``fail`` fails."""

    def __init__(self, answer=None) -> None:
        self.asked: list[str] = []
        self._answer = answer or (lambda prompt: f"answer to {prompt}")

    async def ask(self, request, position, observer=None):
        self.asked.append(request.prompt)
        if observer is not None:
            observer(CallEvent(position, Phase.SENT, "m-1"))
        if request.prompt.startswith("fail"):
            raise ProviderError("no answer came", hint="try again", code="overloaded")
        text = self._answer(request.prompt)
        return Answer(text, "m-1", Usage(10, 5), 120, raw=json.dumps({"text": text}).encode())

    async def budget(self):
        return Budget(len(self.asked), 100, 0, 0, 0, 0, None, None, False, 0, None, 0, 0, 0, 0, None, None, None)


def result_body(journal, cell, *, stdout="", status="ok", error=None, final=None, variables=()):
    return {
        "cell": cell,
        "status": status,
        "error": None if error is None else journal.text(error),
        "stdout": {
            "digest": hashlib.sha256(stdout.encode()).hexdigest(),
            "chars": len(stdout),
            "text": journal.text(stdout),
        },
        "final": None
        if final is None
        else {
            "kind": "direct",
            "name": None,
            "bytes": len(final),
            "digest": hashlib.sha256(final).hexdigest(),
            "text": journal.blob(final),
        },
        "variables": journal.blob(json.dumps(list(variables)).encode()),
        "warnings": [],
        "elapsed_ms": 40,
        "busy_ms": 10,
    }


def record_run(folder, *, cells=None, payer=None, start=None):
    """Write the record of a run: ``cells`` are ``(code, prompts, stdout, final)``. Returns the folder."""
    cells = cells or [
        ("x = llm_query_batch(['a', 'b'])", ["a", "b", "fail c"], "printed <b>bold</b>\n", None),
        ("FINAL(str(x))", [], "", b"the final answer"),
    ]
    asyncio.run(_record(folder, cells, payer or Payer(), start or start_body()))
    return folder


async def _record(folder, cells, payer, start):
    journal = Journal(folder)
    journal.append("start", **start)
    journal.append("restored", why="started", cells=[], divergence=None)
    journal.append("input", digest=hashlib.sha256(INPUT).hexdigest(), bytes=len(INPUT), manifest=None, index=None)
    now = [0]
    recorder = Recorder(payer, journal, cell=lambda: now[0])
    for number, (code, prompts, stdout, final) in enumerate(cells, 1):
        now[0] = number
        journal.append("cell", cell=number, code=journal.text(code), timeout_s=60.0)
        recorder.began(number)
        asks = [recorder.ask(Request(prompt), Position(number, at)) for at, prompt in enumerate(prompts)]
        await asyncio.gather(*asks, return_exceptions=True)
        await recorder.budget()
        journal.append("result", **result_body(journal, number, stdout=stdout, final=final))
    journal.append("end", reason="no_session", message="it was stopped")
    journal.close()
