"""The values that pass between a session and the broker, and between the broker and a provider.

Money is integer micro-USD, tokens and bytes are integers, deadlines are ``time.monotonic()`` seconds. Nothing here holds a key:
credentials travel as :class:`Credentials`, whose repr is redacted, and end in the adapter that needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a run a call stands: the cell's number (from 1) and the call's place in program order in it (from 0)."""

    cell: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Request:
    """One sub-call as the guest asked for it. ``model=None`` and ``max_tokens=None`` mean the session's defaults."""

    prompt: str
    system: str | None = None
    prefix: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    cache: bool = True
    thinking_budget: int | None = None
    schema: str | None = None
    """A JSON Schema as text."""
    sample: int = 0
    group: int = 0
    """Batch identity within the session; items of one batch share it."""
    width: int = 0
    """The batch's own concurrency; 0 is none."""
    size: int = 1
    """Items in the batch."""
    tools: str | None = None
    """For the host's own conversations, never from a guest: JSON list of tools. ``prompt`` is then a JSON list of messages, and the answer's
    text a JSON list of content blocks; see :mod:`rlm_sandbox.broker.conversation`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reported them, validated: not negative, integers.

    ``input_tokens`` excludes what was read from or written to the provider's prompt cache.
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def total_in(self) -> int:
        """All input tokens, cached ones included: the public ``tokens_in``."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sub-call came to. ``text`` is JSON text when a schema was given."""

    text: str
    model: str
    usage: Usage
    cost_micro: int = 0
    cached: bool = False
    attempts: int = 1
    request_id: str | None = None
    stop_reason: str | None = None
    raw: bytes = b""
    """The provider's response body, for the journal; empty where the answer came from the response cache."""


class Secret:
    """A string that never shows itself: not in repr, str, format, logs or tracebacks. ``reveal()`` is for adapters only."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret; call it where it is used and nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        msg = "a secret is not serialised"
        raise TypeError(msg)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a provider needs from the environment of ``start``."""

    api_key: Secret | None = None
    base_url: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Adapter-specific, not secret: ``script`` (path of a scripted answer file), ``gguf`` (path of local weights)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A session's caps; ``None`` is no cap on that axis."""

    calls: int | None = 100
    tokens: int | None = None
    token_warning: int | None = None
    cost_micro: int | None = None
    deadline: float | None = None
    """``time.time()`` seconds after which nothing may be bought (wall clock, since it must survive a restart)."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Everything the broker must know of a session."""

    session: str
    provider: str
    model: str
    credentials: Credentials
    allow_models: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    concurrency: int = 20
    max_tokens: int = 4096
    call_deadline_s: float = 600.0
    """Total time of one call with all its attempts."""
    cache_scope: str | None = None
    """Response-cache scope; None is the session's own."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A session's account at one instant. Field names are the public ones (``budget`` command and ``budget()``)."""

    calls: int
    limit: int | None
    tokens_in: int
    tokens_out: int
    cache_reads: int
    cache_writes: int
    token_limit: int | None
    token_warning: int | None
    warned_tokens: bool
    cost_micro: int
    cost_limit_micro: int | None
    held_micro: int
    held_calls: int
    held_tokens: int
    cached_calls: int
    time_limit_s: float | None
    time_left_s: float | None
    latched: str | None
    """Why the session is shut for spending, if it is."""
    unreported_tokens: int = 0
    """Tokens charged at the full hold because nobody reported them; they count towards ``token_limit``."""
    unpriced_calls: int = 0
    """Calls of models without a known price: ``cost_micro`` does not contain them."""


class Phase(StrEnum):
    """What happens to a sub-call, for progress and the journal."""

    QUEUED = "queued"
    SENT = "sent"
    FAULT = "fault"
    """One attempt failed; another may follow. ``error_kind`` is the fault's code."""
    ANSWERED = "answered"
    FAILED = "failed"
    CACHED = "cached"


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Told to the session's observer as it happens; ``error_kind`` is set when the phase is ``failed``."""

    position: Position
    phase: Phase
    model: str
    usage: Usage | None = None
    cost_micro: int = 0
    error_kind: str | None = None


Observer = "Callable[[CallEvent], None]"


class ProviderFault(Exception):  # noqa: N818 - internal between adapter and core, never shown
    """One attempt failed. The adapter translates every foreign error into this; the core decides what it means.

    ``billable``: ``"no"`` (refused before anything was generated: frees the hold), ``"unknown"`` (reset, timeout, unusable answer:
    settles at the full hold), ``"yes"`` (answered, with ``usage``).
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        billable: str = "unknown",
        retryable: bool = False,
        rate_limited: bool = False,
        overloaded: bool = False,
        retry_after_s: float | None = None,
        usage: Usage | None = None,
        request_id: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.billable = billable
        self.retryable = retryable
        self.rate_limited = rate_limited
        self.overloaded = overloaded
        self.retry_after_s = retry_after_s
        self.usage = usage
        self.request_id = request_id
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """A canonical request: every default filled in. This, and nothing else of the guest's, reaches an adapter."""

    model: str
    system: str | None
    prefix: str | None
    prompt: str
    max_tokens: int
    cache: bool
    thinking_budget: int | None
    schema: str | None
    sample: int
    tools: str | None = None

    @property
    def output_ceiling(self) -> int:
        """Tokens the provider may bill as output, thinking included: what is sent as its limit, and what a hold must cover."""
        return self.max_tokens + (self.thinking_budget or 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """One successful attempt."""

    text: str
    usage: Usage
    model: str
    stop_reason: str | None = None
    request_id: str | None = None
    raw: bytes = b""
    """The provider's response body, for the journal."""


class Provider(Protocol):
    """One model provider. Instances are cheap, bound to one session's credentials, and used on one event loop."""

    name: str
    priced: bool
    """False where calls cost nothing (local, scripted): no price is needed under a USD cap."""

    def default_model(self) -> str:
        """Return the model for sub-calls when nobody names one."""

    def min_cacheable_tokens(self, model: str) -> int | None:
        """Return the shortest prefix the provider caches for this model, or None where there is no explicit cache."""

    async def attempt(self, call: Call, *, timeout_s: float, began: Callable[[], None]) -> Reply:
        """Make exactly one request. Calls ``began()`` when the response starts. Raises :class:`ProviderFault` only."""

    async def aclose(self) -> None:
        """Free connections and processes."""
