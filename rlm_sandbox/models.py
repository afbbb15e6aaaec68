"""The JSON documents that commands print and the Python API returns: every key always present, in this order.

``FORMAT_VERSION`` is raised when a key changes meaning or goes; keys may be added without it. Times are seconds or UTC ISO 8601, sizes are
bytes unless a name says characters, money is USD.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1

CellStatus = Literal["ok", "error", "timeout", "interrupted", "kernel_died", "running"]


class Document(BaseModel):
    """Base of all documents: immutable, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FilePreview(Document):
    """One file of the input; ``chars`` is null where counting would cost a read of a large file."""

    path: str
    chars: int | None
    bytes: int


class LanguageSize(Document):
    """Files of one kind in a directory."""

    language: str
    files: int
    bytes: int


class Started(Document):
    """What ``start`` prints."""

    format_version: int = FORMAT_VERSION
    session: str
    input: str
    is_directory: bool
    context_total_bytes: int
    context_total_chars: int | None
    context_prefix: str
    line_count: int | None
    file_count: int
    files_preview: list[FilePreview]
    languages: list[LanguageSize]
    budget_limit: int | None
    token_limit: int | None
    token_warning: int | None
    cost_limit: float | None
    time_limit: float | None
    session_dir: str
    image: str
    runtime: str
    provider: str
    model: str
    reopened: bool
    warnings: list[str]


class BudgetState(Document):
    """A session's account. ``limit``, ``token_limit`` and ``cost_limit`` are caps, null for none; ``held_*`` is in flight."""

    calls: int
    limit: int | None
    tokens_in: int
    tokens_out: int
    cache_reads: int
    cache_writes: int
    token_limit: int | None
    token_warning: int | None
    warned_tokens: bool
    cost_usd: float
    cost_limit: float | None
    held_usd: float
    held_calls: int
    held_tokens: int
    cached_calls: int
    unreported_tokens: int
    time_limit_s: float | None
    time_left_s: float | None
    latched: str | None


class Variable(Document):
    """A name that cells made; ``len`` is null for what has none."""

    name: str
    type: str
    len: int | None


class FinalAnswer(Document):
    """A recorded final answer; ``length`` in characters, ``preview`` is escape-free."""

    kind: Literal["direct", "var"]
    name: str | None
    length: int
    saved_to: str
    preview: str


class Executed(Document):
    """What ``exec``, ``wait`` and ``interrupt`` print."""

    format_version: int = FORMAT_VERSION
    session: str
    cell: int
    status: CellStatus
    stdout: str
    stdout_len: int
    stdout_truncated: bool
    stdout_full_path: str | None
    error: str | None
    final: FinalAnswer | None
    variables: list[Variable]
    variables_total: int
    budget: BudgetState
    warnings: list[str]
    elapsed_ms: int


class SessionStatus(Document):
    """One entry of ``list``; ``updated`` is epoch seconds, as rlm-skill had it."""

    session: str
    status: Literal["live", "running"]
    input: str
    created_at: str
    updated: int
    idle_s: float
    cell: int
    container: str
    image: str
    runtime: str
    provider: str
    model: str
    session_dir: str
    variables: list[Variable]
    final: FinalAnswer | None
    budget: BudgetState


class SessionList(Document):
    """What ``list`` prints."""

    format_version: int = FORMAT_VERSION
    sessions: list[SessionStatus]


class Stopped(Document):
    """What ``stop`` prints. ``stopped`` is the session's name, or the names with ``--all``."""

    format_version: int = FORMAT_VERSION
    stopped: str | list[str]
    was_live: bool


class Collected(Document):
    """What ``gc`` removed."""

    format_version: int = FORMAT_VERSION
    containers: list[str]
    stages: list[str]
    forgotten: list[str]


class BrokerState(Document):
    """What ``broker status`` prints."""

    format_version: int = FORMAT_VERSION
    running: bool
    pid: int | None
    version: str | None
    socket: str
    home: str
    sessions: list[str]
    uptime_s: float | None
