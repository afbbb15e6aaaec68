"""The exceptions that code in a cell can see, in one tree.

    RLMError
    |-- BudgetExceeded    a cap would be passed; nothing was sent
    |-- PolicyError       the call is not allowed (model, size); nothing was sent
    |-- ProviderError     the provider failed or gave nothing usable; ``code`` says how
    |-- DeadlineError     the call did not end in time
    |-- BatchError        some items of a batch failed; ``results`` holds answers and errors in place
    |-- HostError         the host could not make the call (its ledger cannot be written, a defect); nothing was sent; ``code`` says why
    |-- InputChanged      the input is not what it was at the start of the session
    `-- TooLarge          the result would not fit; read it in pieces

Failures are exceptions, never strings that look like answers. An answer that was cut off is an answer, paid for and often of use, and of a
type of its own: :class:`Truncated`. The host has its own tree; only ``Answer.kind`` crosses.
"""

from __future__ import annotations


class RLMError(Exception):
    """Base of the tree. ``message`` says what happened, ``hint`` (maybe empty) what to do about it."""

    def __init__(self, message: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BudgetExceeded(RLMError):  # noqa: N818 - the documented name
    """A cap on calls, tokens or money would be passed. ``results`` is set when a whole batch ended this way, else None."""

    results: list[object] | None = None


class PolicyError(RLMError):
    """The request is not allowed and was not sent to any provider. ``results`` is set when a whole batch ended this way, else None."""

    results: list[object] | None = None


class ProviderError(RLMError):
    """The provider failed, refused or gave no text. ``code`` is a short machine-readable reason."""

    def __init__(self, message: str = "", hint: str = "", code: str = "failed") -> None:
        super().__init__(message, hint)
        self.code = code


class DeadlineError(RLMError):
    """The call did not end in time."""


class HostError(RLMError):
    """The host could not make the call, and nothing was sent. ``code``: ``prerequisite`` (a ledger that cannot be written), ``internal``, ..."""

    def __init__(self, message: str = "", hint: str = "", code: str = "internal") -> None:
        super().__init__(message, hint)
        self.code = code


class BatchError(RLMError):
    """At least one item of a batch failed. ``results`` has one entry per prompt: the answer, or the ``RLMError``."""

    def __init__(self, message: str = "", results: list[object] | None = None) -> None:
        super().__init__(message)
        self.results: list[object] = results if results is not None else []


class InputChanged(RLMError):  # noqa: N818 - names the fact
    """The input was changed on the host while the session read it."""


class TooLarge(RLMError):  # noqa: N818 - names the fact
    """What was asked for does not fit in memory limits; read it in pieces."""


class Truncated(str):
    """An answer that ended at ``max_tokens`` and not where the model had said what it had to say. A string like any other answer."""

    __slots__ = ()
    truncated = True


for _class in (RLMError, *RLMError.__subclasses__(), Truncated):
    _class.__module__ = "__main__"  # where cells find them: tracebacks name them as cells do, and pools can pickle them


def from_answer(kind: str, code: str, text: str) -> RLMError:
    """Build the error of one failed answer; ``text`` is the message, and from its second line on the hint."""
    message, _, hint = text.partition("\n")
    message = message or kind
    if kind == "provider":
        return ProviderError(message, hint, code or "failed")
    kinds: dict[str, type[RLMError]] = {"budget": BudgetExceeded, "policy": PolicyError, "timeout": DeadlineError}
    if kind not in kinds:
        return HostError(message, hint, code or "internal")
    return kinds[kind](message, hint)
