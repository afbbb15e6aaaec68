"""Every message of the channel, as a closed schema.

Two conversations share one stream. The outer one is between host and **agent** (PID 1 of the container). The inner
one is between host and **kernel** (the process that runs cells) and travels inside :class:`KernelIn` and
:class:`KernelOut` as opaque bytes: the agent frames them and never looks inside. A message names its sender, its fields
with their ranges, and whether it has a payload; anything else in a header is a :class:`FrameError`.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from rlm_sandbox.wire.frames import FrameError, Header, encode

ID_MAX = 2**53 - 1
TEXT_MAX = 4096
VARIABLES_MAX = 200
"""Entries of ``Result.variables``; ``Result.variables_total`` tells how many there were."""

MOUNTS_MAX = 128
SAMPLE_MAX = 256
"""Numbers in a hello's ``sample``: 128 ranges, of which the host asks for half."""
FINAL_CHUNK = 1024 * 1024
"""Bytes of one :class:`Final` payload; a longer answer comes in several, in order."""

WRAPPED_CHUNK = 1024 * 1024
"""Bytes of inner stream in one outer frame, either way. Inner frames may straddle outer ones."""

OUTPUT_CHUNK = 64 * 1024
"""Bytes of one :class:`Output` payload: the capacity of a Linux pipe."""

KINDS = frozenset({"ok", "budget", "provider", "policy", "timeout", "internal"})
"""What an :class:`Answer` can be; all but ``ok`` are raised in the cell as the error of that name."""


def _integer(low: int, high: int, *, optional: bool = False) -> Any:
    return field(metadata={"check": _Int(low, high), "optional": optional})


def _text(limit: int = 256, *, optional: bool = False) -> Any:
    return field(metadata={"check": _Str(limit), "optional": optional})


def _flag() -> Any:
    return field(metadata={"check": _Bool(), "optional": False})


def _choice(*values: str) -> Any:
    return field(metadata={"check": _OneOf(frozenset(values)), "optional": False})


def _strings(limit: int, each: int) -> Any:
    return field(metadata={"check": _ListOf(_Str(each), limit), "optional": False})


def _integers(limit: int, low: int, high: int) -> Any:
    return field(metadata={"check": _ListOf(_Int(low, high), limit), "optional": False})


def _records(limit: int, **shape: object) -> Any:
    return field(metadata={"check": _ListOf(_Record(shape), limit), "optional": False})


@dataclass(frozen=True)
class _Int:
    low: int
    high: int

    def __call__(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True)
class _Str:
    limit: int

    def __call__(self, value: object) -> bool:
        return type(value) is str and len(value) <= self.limit


@dataclass(frozen=True)
class _Bool:
    def __call__(self, value: object) -> bool:
        return type(value) is bool


@dataclass(frozen=True)
class _OneOf:
    values: frozenset[str]

    def __call__(self, value: object) -> bool:
        return type(value) is str and value in self.values


@dataclass(frozen=True)
class _ListOf:
    item: Any
    limit: int

    def __call__(self, value: object) -> bool:
        return type(value) is list and len(value) <= self.limit and all(self.item(entry) for entry in value)


@dataclass(frozen=True)
class _Optional:
    item: Any

    def __call__(self, value: object) -> bool:
        return value is None or bool(self.item(value))


class _Record:
    def __init__(self, shape: dict[str, Any]) -> None:
        self.shape = shape

    def __call__(self, value: object) -> bool:
        return (
            type(value) is dict
            and value.keys() == self.shape.keys()
            and all(check(value[name]) for name, check in self.shape.items())
        )


@dataclass(eq=False, repr=False)
class Message:
    """Base of all messages: values that do not change. ``TYPE`` is the header's ``t``; ``payload_max`` is 0 where none is allowed.

    What makes them values is written once here instead of generated for each class: that generation was half of the
    guest's start-up time.
    """

    TYPE: ClassVar[str]
    payload_max: ClassVar[int] = 0

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__:
            raise FrozenInstanceError(name)
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(name)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def encode(self) -> bytes:
        """Return the message as one frame."""
        header: Header = {"t": self.TYPE}
        for name in _field_checks(type(self)):
            header[name] = getattr(self, name)
        return encode(header, getattr(self, "payload", b""))


_CHECKS: dict[type[Message], dict[str, Any]] = {}


def _field_checks(cls: type[Message]) -> dict[str, Any]:
    checks = _CHECKS.get(cls)
    if checks is None:
        checks = {}
        for item in fields(cls):
            if item.name != "payload":
                check = item.metadata["check"]
                checks[item.name] = _Optional(check) if item.metadata["optional"] else check
        _CHECKS[cls] = checks
    return checks


# --- outer: host to agent ---------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Hello(Message):
    """First message of all; the guest is silent until it comes.

    ``grace_ms`` is how long an interrupted kernel may take before it is killed, ``lifetime_ms`` how long the whole
    container may live even if the host forgets it, ``output_max`` the bytes of output that one cell may send. ``sample`` are ranges of the input
    to hash for the report (offset, length, offset, length and so on, in bytes), none where the host can tell the input by its inode.
    """

    TYPE = "hello"
    protocol: int = _integer(1, 1_000_000)
    session: str = _text(128)
    grace_ms: int = _integer(1, 3_600_000)
    lifetime_ms: int = _integer(1, ID_MAX)
    output_max: int = _integer(0, ID_MAX)
    sample: list[int] = _integers(SAMPLE_MAX, 0, 2**63)


@dataclass(eq=False, repr=False)
class Go(Message):
    """The host has checked the report: the kernel may be started.

    The payload is the kernel's settings, a JSON object that only the kernel reads (``guest/config.py``).
    """

    TYPE = "go"
    payload_max = 1024 * 1024
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class CellBegin(Message):
    """Starts the agent's clock for a cell; its output until :class:`CellEnd` belongs to it."""

    TYPE = "cell_begin"
    cell: int = _integer(1, ID_MAX)
    timeout_ms: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class CellEnd(Message):
    """The host has the cell's result: the clock stops and stray processes are killed."""

    TYPE = "cell_end"
    cell: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class KernelIn(Message):
    """Opaque bytes for the kernel of generation ``gen``, chunked anyhow; dropped when that one is gone."""

    TYPE = "kernel_in"
    gen: int = _integer(1, ID_MAX)
    payload_max = WRAPPED_CHUNK
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Interrupt(Message):
    """Interrupt the running cell as Ctrl-C would; killed after the grace time if it goes on."""

    TYPE = "interrupt"
    cell: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class Bye(Message):
    """End the container. Needed because a half-closed attach stream is not reliable."""

    TYPE = "bye"


# --- outer: agent to host ---------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Report(Message):
    """What the container looks like from inside, before any untrusted code: the host refuses to go on if a control is off.

    Capability masks are hexadecimal as in ``/proc/self/status``; limits are bytes or counts with -1 for "none";
    ``cpu_milli`` is thousandths of a CPU. ``mounts`` are ``"target fstype options"``, where a mounted
    character device has the option ``rdev=MAJOR:MINOR``. ``input_*`` identify the mounted
    input so that the host can compare them with the descriptor it admitted; ``input_sample`` is the SHA-256 of the ranges
    that the hello named, empty where it named none or they cannot be read.
    """

    TYPE = "report"
    protocol: int = _integer(0, 1_000_000)
    guest_version: str = _text(64)
    python: str = _text(64)
    uid: int = _integer(0, 2**32)
    gid: int = _integer(0, 2**32)
    groups: list[int] = _integers(64, 0, 2**32)
    cap_eff: str = _text(32)
    cap_prm: str = _text(32)
    cap_bnd: str = _text(32)
    cap_inh: str = _text(32)
    cap_amb: str = _text(32)
    no_new_privs: int = _integer(-1, 1)
    seccomp: int = _integer(-1, 2)
    socket_denied: bool = _flag()
    dumpable: int = _integer(-1, 2)
    memory_max: int = _integer(-1, ID_MAX)
    swap_max: int = _integer(-1, ID_MAX)
    pids_max: int = _integer(-1, ID_MAX)
    cpu_milli: int = _integer(-1, ID_MAX)
    nofile: int = _integer(-1, ID_MAX)
    core: int = _integer(-1, ID_MAX)
    root_readonly: bool = _flag()
    interfaces: list[str] = _strings(64, 64)
    mounts: list[str] = _strings(MOUNTS_MAX, 512)
    env: list[str] = _strings(128, 128)
    kernel_release: str = _text(128)
    input_dev: int = _integer(-1, 2**64)
    input_ino: int = _integer(-1, 2**64)
    input_size: int = _integer(-1, 2**63)
    input_sample: str = _text(64)


@dataclass(eq=False, repr=False)
class KernelUp(Message):
    """A kernel of generation ``gen`` was started; its bytes follow."""

    TYPE = "kernel_up"
    gen: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class KernelOut(Message):
    """Opaque bytes from the kernel of generation ``gen``, chunked anyhow."""

    TYPE = "kernel_out"
    gen: int = _integer(1, ID_MAX)
    payload_max = WRAPPED_CHUNK
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Output(Message):
    """What the cell and its children wrote to descriptors 1 and 2, merged as on a terminal."""

    TYPE = "output"
    cell: int = _integer(0, ID_MAX)
    payload_max = OUTPUT_CHUNK
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Expired(Message):
    """The cell's time is over; it has been interrupted."""

    TYPE = "expired"
    cell: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class CellClosed(Message):
    """Answers :class:`CellEnd`: output is complete. ``dropped`` bytes went over ``output_max``; ``strays`` were killed."""

    TYPE = "cell_closed"
    cell: int = _integer(1, ID_MAX)
    dropped: int = _integer(0, ID_MAX)
    strays: int = _integer(0, ID_MAX)


@dataclass(eq=False, repr=False)
class KernelDown(Message):
    """The kernel ended. A new one is started at once under the next generation.

    ``cause``: ``exit`` (``code`` is its status), ``signal`` (``code`` is the signal's number), ``memory`` (killed by the
    out-of-memory killer), ``unresponsive`` (killed because it ignored an interrupt). ``expired`` tells that the cell's time
    was over before.
    """

    TYPE = "kernel_down"
    gen: int = _integer(1, ID_MAX)
    cell: int = _integer(0, ID_MAX)
    cause: str = _choice("exit", "signal", "memory", "unresponsive")
    code: int = _integer(0, 255)
    expired: bool = _flag()
    dropped: int = _integer(0, ID_MAX)


# --- inner: host to kernel --------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Cell(Message):
    """Run this source (UTF-8 payload)."""

    TYPE = "cell"
    cell: int = _integer(1, ID_MAX)
    payload_max = 16 * 1024 * 1024
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Answer(Message):
    """The outcome of one :class:`Ask`. ``kind`` is ``ok`` (payload: the text) or an error (payload: message and hint)."""

    TYPE = "answer"
    id: int = _integer(1, ID_MAX)
    kind: str = _choice(*sorted(KINDS))
    code: str = _text(64)
    cached: bool = _flag()
    payload_max = 16 * 1024 * 1024
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class BudgetInfo(Message):
    """Answers :class:`AskBudget`; the payload is the JSON object that ``budget()`` returns."""

    TYPE = "budget_info"
    id: int = _integer(1, ID_MAX)
    payload_max = 64 * 1024
    payload: bytes = b""


# --- inner: kernel to host --------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Ready(Message):
    """The namespace is built; cells may come."""

    TYPE = "ready"


@dataclass(eq=False, repr=False)
class Share(Message):
    """Register a text (system, prefix or schema) once, to be named by many asks."""

    TYPE = "share"
    id: int = _integer(1, ID_MAX)
    payload_max = 16 * 1024 * 1024
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Unshare(Message):
    """Forget a shared text. Asks in flight keep it."""

    TYPE = "unshare"
    id: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class Ask(Message):
    """One sub-LLM call; the payload is the prompt.

    ``group`` gathers the items of one batch, ``width`` is its ``concurrency`` (0: no limit of its own), ``size`` how many
    items the batch has, ``ordinal`` the call's position in program order within the cell (from 0).
    """

    TYPE = "ask"
    id: int = _integer(1, ID_MAX)
    group: int = _integer(1, ID_MAX)
    size: int = _integer(1, ID_MAX)
    width: int = _integer(0, 1_000_000)
    ordinal: int = _integer(0, ID_MAX)
    system: int | None = _integer(1, ID_MAX, optional=True)
    prefix: int | None = _integer(1, ID_MAX, optional=True)
    schema: int | None = _integer(1, ID_MAX, optional=True)
    model: str | None = _text(256, optional=True)
    max_tokens: int | None = _integer(1, 2**31, optional=True)
    thinking_budget: int | None = _integer(1, 2**31, optional=True)
    cache: bool = _flag()
    sample: int = _integer(0, 2**31)
    payload_max = 16 * 1024 * 1024
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Cancel(Message):
    """The cell no longer waits for this call (it was interrupted)."""

    TYPE = "cancel"
    id: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class AskBudget(Message):
    """Ask for the session's budget; costs nothing."""

    TYPE = "ask_budget"
    id: int = _integer(1, ID_MAX)


@dataclass(eq=False, repr=False)
class Final(Message):
    """A piece of the cell's final answer (UTF-8), in order; ``last`` closes it. ``length`` is in characters."""

    TYPE = "final"
    cell: int = _integer(1, ID_MAX)
    kind: str = _choice("direct", "var")
    name: str | None = _text(256, optional=True)
    length: int = _integer(0, ID_MAX)
    last: bool = _flag()
    payload_max = FINAL_CHUNK
    payload: bytes = b""


@dataclass(eq=False, repr=False)
class Result(Message):
    """The cell ended. ``error`` in the payload is a traceback (UTF-8), empty when ``status`` is ``ok``."""

    TYPE = "result"
    cell: int = _integer(1, ID_MAX)
    status: str = _choice("ok", "error", "interrupted")
    variables: list[dict[str, Any]] = _records(
        VARIABLES_MAX, name=_Str(128), type=_Str(64), len=_Optional(_Int(0, ID_MAX))
    )
    variables_total: int = _integer(0, ID_MAX)
    warnings: list[str] = _strings(16, 512)
    payload_max = 256 * 1024
    payload: bytes = b""


HOST_TO_AGENT = (Hello, Go, CellBegin, CellEnd, KernelIn, Interrupt, Bye)
AGENT_TO_HOST = (Report, KernelUp, KernelOut, Output, Expired, CellClosed, KernelDown)
HOST_TO_KERNEL = (Cell, Answer, BudgetInfo)
KERNEL_TO_HOST = (Ready, Share, Unshare, Ask, Cancel, AskBudget, Final, Result)

M = TypeVar("M", bound=Message)


def parser(allowed: tuple[type[Message], ...]) -> MessageParser:
    """Return a parser for the messages that one side may send."""
    return MessageParser({cls.TYPE: cls for cls in allowed})


class MessageParser:
    """Turns a frame into one of the messages that this peer may send, or raises :class:`FrameError`."""

    def __init__(self, by_type: dict[str, type[Message]]) -> None:
        self._by_type = by_type

    def __call__(self, header: Header, payload: bytes) -> Message:
        """Check the closed schema: exact keys, types, ranges and payload size."""
        kind = header.pop("t", None)
        cls = self._by_type.get(kind) if isinstance(kind, str) else None
        if cls is None:
            msg = "message of a type that this peer may not send"
            raise FrameError(msg)
        checks = _field_checks(cls)
        if header.keys() != checks.keys():
            msg = f"{cls.TYPE}: wrong fields"
            raise FrameError(msg)
        for name, check in checks.items():
            if not check(header[name]):
                msg = f"{cls.TYPE}.{name}: out of range"
                raise FrameError(msg)
        if len(payload) > cls.payload_max:
            msg = f"{cls.TYPE}: payload too large"
            raise FrameError(msg)
        values: dict[str, Any] = dict(header)
        if cls.payload_max:
            values["payload"] = payload
        return cls(**values)
