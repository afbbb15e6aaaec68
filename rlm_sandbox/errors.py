"""Every failure this package raises, in one tree.

    RLMError                      kind              exit code
    |-- UsageError                usage              2   the command line or API call is wrong
    |   `-- InputError            input              2   the input cannot be admitted
    |-- PrerequisiteError         prerequisite       3   something the host must have is missing
    |   |-- EngineError           engine             3   no Docker engine answers, or it refused
    |   |-- ImageError            image              3   the guest image is absent and cannot be built
    |   `-- ControlMissing        control            3   a hardening control is not in force: we do not start
    |-- NoSuchSession             no_session         4
    |-- PolicyError               policy             5   a limit that no flag can exceed
    |-- BudgetExceeded            budget             6
    |-- ProviderError             provider           7   the model's provider failed, refused or lied
    |-- ProtocolError             protocol           8   a peer broke the channel's rules
    |-- DeadlineError             timeout            9
    |   `-- BusyError             busy               9   another cell is running and did not end in time
    |-- DivergenceError           divergence        10   a replay did not do what the record says
    |-- BundleError               bundle            11   an exported bundle is refused
    |-- InternalError             internal          70
    `-- InterruptedByUser         interrupted      130

An error carries a one-line ``message`` (what happened) and a one-line ``hint`` (what to do about it);
``kind`` is a closed set that scripts may match on, and ``exit_code`` is what the CLI ends with.
This module imports nothing, so that the CLI's fast path can.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from typing import ClassVar


class RLMError(Exception):
    """Base of the tree. ``str(error)`` is the message; the hint is kept apart so that JSON can carry both."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, object]:
        """Return ``{kind, message, hint, exit_code}``, the public shape of a failure."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class UsageError(RLMError):
    """The caller asked for something that makes no sense."""

    kind = "usage"
    exit_code = 2


class InputError(UsageError):
    """The input is missing, empty, unreadable, of a special type or over a limit."""

    kind = "input"


class PrerequisiteError(RLMError):
    """The host lacks something that the run needs."""

    kind = "prerequisite"
    exit_code = 3


class EngineError(PrerequisiteError):
    """The Docker engine cannot be reached, or refused what a run needs."""

    kind = "engine"


class ImageError(PrerequisiteError):
    """The guest image is missing, does not fit this version, or cannot be built."""

    kind = "image"


class ControlMissing(PrerequisiteError):  # noqa: N818 - names the fact, as NoSuchSession does
    """A control of the run profile is not in force inside the container."""

    kind = "control"


class NoSuchSession(RLMError):  # noqa: N818
    """No live session has that name."""

    kind = "no_session"
    exit_code = 4


class PolicyError(RLMError):
    """A policy forbids it; no flag and no code in a cell can change that."""

    kind = "policy"
    exit_code = 5


class BudgetExceeded(RLMError):  # noqa: N818 - the name rlm-skill documents
    """A hold was refused: which cap, what is left and what would fit are in the message."""

    kind = "budget"
    exit_code = 6


class ProviderError(RLMError):
    """The provider did not give a usable answer. ``code`` says which way (see docs/providers)."""

    kind = "provider"
    exit_code = 7

    def __init__(self, message: str, *, hint: str = "", code: str = "failed") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ProtocolError(RLMError):
    """A peer sent something that the channel's grammar or state table does not allow."""

    kind = "protocol"
    exit_code = 8


class DeadlineError(RLMError):
    """Time ran out."""

    kind = "timeout"
    exit_code = 9


class BusyError(DeadlineError):
    """Another cell was still running when the wait ran out; nothing was run."""

    kind = "busy"


class DivergenceError(RLMError):
    """A replay produced something else than the record."""

    kind = "divergence"
    exit_code = 10


class BundleError(RLMError):
    """An exported bundle is truncated, tampered with, too new or too large."""

    kind = "bundle"
    exit_code = 11


class InternalError(RLMError):
    """A defect of this program."""


class InterruptedByUser(RLMError):  # noqa: N818
    """The person pressed Ctrl-C or sent SIGTERM."""

    kind = "interrupted"
    exit_code = 130


def _tree(cls: type[RLMError]) -> list[type[RLMError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


BY_KIND: dict[str, type[RLMError]] = {cls.kind: cls for cls in reversed(_tree(RLMError))}
BY_KIND["internal"] = InternalError


def from_kind(kind: str, message: str, hint: str = "") -> RLMError:
    """Rebuild an error that crossed a process boundary; an unknown kind becomes ``InternalError``."""
    return BY_KIND.get(kind, InternalError)(message, hint=hint)
