"""Drives a real guest over pipes, without a container: the host's half of the channel for tests, in one thread."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.connection import HostConnection

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from rlm_sandbox.guest.agent import main; main()"
PATIENCE = 60.0
PYTHON = os.environ.get("GUEST_PYTHON", sys.executable)


class GuestGone(Exception):  # noqa: N818 - names the fact
    """The agent's end of the channel closed."""


@dataclass
class Outcome:
    """What one cell did, as the host saw it."""

    status: str = ""
    output: bytes = b""
    error: str = ""
    final: str | None = None
    final_kind: str | None = None
    final_name: str | None = None
    result: m.Result | None = None
    closed: m.CellClosed | None = None
    down: m.KernelDown | None = None
    expired: bool = False
    messages: list[m.Message] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace")

    @property
    def variables(self) -> dict[str, dict]:
        return {entry["name"]: entry for entry in self.result.variables}


class Guest:
    """A running agent, in a process of its own or started by ``command``. ``on_message`` may answer what the kernel asks: it gets ``(guest, message)``."""

    def __init__(
        self,
        *,
        settings=None,
        grace_ms=1000,
        lifetime_ms=600_000,
        output_max=1 << 20,
        env=None,
        ready=True,
        command=None,
    ):
        self.process = subprocess.Popen(
            command or [PYTHON, "-I", "-c", LAUNCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            bufsize=0,
        )
        self.connection = HostConnection()
        self.pending: list[m.Message] = []
        self.on_message = answer_upper
        self.report = None
        self._cell = 0
        self._unsent = bytearray()
        os.set_blocking(self.process.stdin.fileno(), False)
        self.send(
            m.Hello(
                protocol=PROTOCOL_VERSION,
                session="s-test",
                grace_ms=grace_ms,
                lifetime_ms=lifetime_ms,
                output_max=output_max,
                sample=[],
            )
        )
        self.report = self.expect(m.Report)
        if ready:
            self.send(m.Go(payload=json.dumps(settings or {}).encode()))
            self.expect(m.Ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> int:
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()

    def send(self, *messages: m.Message) -> None:
        for message in messages:
            self.send_raw(self.connection.send(message))

    def send_raw(self, raw: bytes) -> None:
        self._unsent += raw
        self._push()

    def _push(self) -> None:
        try:
            while self._unsent:
                sent = os.write(self.process.stdin.fileno(), self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except BrokenPipeError as exc:
            raise GuestGone from exc

    def receive(self, patience: float = PATIENCE) -> m.Message:
        """Return the next message; answers of ``on_message`` go out before it is returned."""
        deadline = time.monotonic() + patience
        while not self.pending:
            out, into = self.process.stdout.fileno(), self.process.stdin.fileno()
            readable, _, _ = select.select([out], [into] if self._unsent else [], [], deadline - time.monotonic())
            self._push()
            if readable:
                data = os.read(out, 1 << 20)
                if not data:
                    raise GuestGone
                for message in self.connection.receive(data):
                    self.on_message(self, message)
                    self.pending.append(message)
            elif time.monotonic() > deadline:
                raise TimeoutError("the guest says nothing")
        return self.pending.pop(0)

    def expect(self, kind: type[m.Message]) -> m.Message:
        """Return the next message of ``kind``, passing over others."""
        while not isinstance(message := self.receive(), kind):
            continue
        return message

    def begin(self, source: str, timeout: float = 60.0) -> int:
        self._cell += 1
        raw = source.encode("utf-8")
        self.send(m.CellBegin(cell=self._cell, timeout_ms=int(timeout * 1000)), m.Cell(cell=self._cell, payload=raw))
        return self._cell

    def finish(self) -> Outcome:
        """Collect the running cell until it is closed, or until its kernel was replaced."""
        got = Outcome()
        pieces: list[bytes] = []
        while True:
            message = self.receive()
            got.messages.append(message)
            if isinstance(message, m.Output):
                got.output += message.payload
            elif isinstance(message, m.Final):
                pieces.append(message.payload)
                if message.last:
                    got.final = b"".join(pieces).decode()
                    got.final_kind, got.final_name = message.kind, message.name
            elif isinstance(message, m.Expired):
                got.expired = True
            elif isinstance(message, m.Result):
                got.result, got.status, got.error = message, message.status, message.payload.decode()
                self.send(m.CellEnd(cell=self._cell))
            elif isinstance(message, m.CellClosed):
                got.closed = message
                return got
            elif isinstance(message, m.KernelDown):
                got.down, got.status = message, "kernel_died"
            elif isinstance(message, m.Ready):
                return got

    def run(self, source: str, timeout: float = 60.0) -> Outcome:
        """Run one cell to its end."""
        self.begin(source, timeout)
        return self.finish()


def answer_upper(guest: Guest, message: m.Message) -> None:
    """Answer every prompt with itself in capitals, and budgets with a small object."""
    if isinstance(message, m.Ask):
        guest.send(m.Answer(id=message.id, kind="ok", code="", cached=False, payload=message.payload.upper()))
    elif isinstance(message, m.AskBudget):
        guest.send(m.BudgetInfo(id=message.id, payload=b'{"calls": 3}'))
