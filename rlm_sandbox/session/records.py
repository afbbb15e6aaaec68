"""What a journal's lines say, as closed types: whoever reads a journal, a stranger's included, reads it through these.

A line that is not exactly one of these is refused. Bulk is never in a line: fields of type :data:`Digest` name texts of the pack. Adding a
field or a kind raises :data:`JOURNAL_VERSION`.
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

JOURNAL_VERSION = 2

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**63)]
Cell = Annotated[int, Field(ge=1, le=2**53 - 1)]
Name = Annotated[str, Field(max_length=512)]
Line = Annotated[str, Field(max_length=8192)]
Json = dict[Name, JsonValue]


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$"), AfterValidator(_moment)]
Seconds = Annotated[float, Field(ge=0, le=30 * 86400, allow_inf_nan=False)]
Millis = Annotated[int, Field(ge=0, le=2**40)]
"""Thirty years: more is no time that a run took."""

CellOutcome = Literal["ok", "error", "timeout", "interrupted", "kernel_died"]


class Part(BaseModel):
    """Base of everything in a line."""

    # Built when a journal is first read: a daemon that only writes them starts 20 ms sooner.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Record(Part):
    """What every line has: version, place in the chain, time (UTC ISO)."""

    v: Literal[2]
    seq: Count
    prev: Digest
    at: Moment


class Input(Part):
    """The input as it was admitted. ``mode``, ``glob`` and ``exclude`` are those of ``start``."""

    kind: Literal["file", "directory"]
    display: Line
    bytes: Count
    files: Count
    mode: Literal["auto", "snapshot", "bind"]
    glob: Line | None
    exclude: Line | None
    mtime_ns: int


class Image(Part):
    """``name`` as asked for (base, data, a reference), ``id`` of its content."""

    name: Name
    id: Name
    python: Name


class Start(Record):
    """A container began to serve. ``go`` is what its kernel was told."""

    kind: Literal["start"]
    session: Name
    question: Annotated[str, Field(max_length=65536)] | None
    input: Input
    image: Image
    runtime: Name
    provider: Name
    model: Name
    profile: Json
    report: Json
    settings: Json
    go: Json
    versions: Json
    reopened: bool


class InputDigest(Record):
    """What the input was: ``digest`` of a file, or of the ``manifest`` (JSON lines of path, bytes, sha256) of a directory.

    ``index`` is the guest's own index of a directory. All null when the input could not be read to its end.
    """

    kind: Literal["input"]
    digest: Digest | None
    bytes: Count
    manifest: Digest | None
    index: Digest | None


class Restored(Record):
    """A fresh interpreter was given the variables of ``cells`` by running them again; ``why`` it was fresh."""

    kind: Literal["restored"]
    why: Literal["started", "reopened", "kernel"]
    cells: list[Cell]
    divergence: Line | None


class CellBegan(Record):
    """A cell was sent. The same number again: the cell was cut off by a crash and is run anew."""

    kind: Literal["cell"]
    cell: Cell
    code: Digest
    timeout_s: Seconds


class Asked(Part):
    """A sub-call as the guest asked for it; texts by digest, null where the session's default stands."""

    prompt: Digest
    system: Digest | None
    prefix: Digest | None
    schema_: Digest | None = Field(alias="schema")
    model: Name | None
    max_tokens: Count | None
    cache: bool
    thinking_budget: Count | None
    sample: Count


class Failure(Part):
    """An error that the cell saw."""

    kind: Name
    code: Name
    message: Line
    hint: Line


class Attempt(Part):
    """One request to the provider: when it was sent, in milliseconds since the call was asked, and what came of it."""

    number: Count
    sent_ms: Millis
    outcome: Name


class Call(Record):
    """A sub-call and what it came to. ``late``: the cell had stopped waiting; it never saw this answer.

    ``asked_ms`` counts from the cell's beginning, ``elapsed_ms`` from then; ``usage`` is input, output, cache read, cache write tokens.
    """

    kind: Literal["call"]
    cell: Cell
    ordinal: Count
    digest: Digest
    request: Asked
    group: Count
    size: Count
    outcome: Literal["answered", "cached", "failed"]
    late: bool
    answer: Digest | None
    raw: Digest | None
    model: Name
    usage: Annotated[list[Count], Field(min_length=4, max_length=4)] | None
    cost_micro: Count
    attempts: Annotated[list[Attempt], Field(max_length=64)]
    request_id: Line | None
    stop_reason: Name | None
    asked_ms: Millis
    elapsed_ms: Millis
    error: Failure | None


class Budget(Record):
    """What a cell was told when it asked for its budget."""

    kind: Literal["budget"]
    cell: Cell
    state: Json


class Output(Part):
    """What a cell wrote: digest of all its bytes as they came, characters, and the shown part (made visible, cut in the middle)."""

    digest: Digest
    chars: Count
    text: Digest


class Final(Part):
    """A final answer; ``text`` is null when it was too large to keep."""

    kind: Literal["direct", "var"]
    name: Line | None
    bytes: Count
    digest: Digest
    text: Digest | None


class Result(Record):
    """A cell ended. ``busy_ms`` is ``elapsed_ms`` without the time in which it only waited for sub-calls."""

    kind: Literal["result"]
    cell: Cell
    status: CellOutcome
    error: Digest | None
    stdout: Output
    final: Final | None
    variables: Digest
    warnings: list[Line]
    elapsed_ms: Millis
    busy_ms: Millis


class Limits(Record):
    """Somebody outside changed the caps."""

    kind: Literal["limits"]
    changes: Json


class Interrupt(Record):
    """Somebody outside interrupted the cell."""

    kind: Literal["interrupt"]
    cell: Cell


class Kernel(Record):
    """The interpreter ended; ``cell`` is 0 between cells."""

    kind: Literal["kernel"]
    cause: Name
    code: int
    cell: Count


class End(Record):
    """The container ended, for a reason with a message."""

    kind: Literal["end"]
    reason: Name
    message: Line


AnyRecord = Annotated[
    Start | InputDigest | Restored | CellBegan | Call | Budget | Result | Limits | Interrupt | Kernel | End,
    Field(discriminator="kind"),
]


_building = threading.Lock()
_adapter: TypeAdapter[AnyRecord] | None = None


def adapter() -> TypeAdapter[AnyRecord]:
    """Return what checks a line. Journals are read in threads, and pydantic does not say that two may build at once."""
    global _adapter  # noqa: PLW0603 - made once
    if _adapter is None:
        with _building:
            _adapter = _adapter or TypeAdapter(AnyRecord)
    return _adapter
