"""What no flag and no guest can exceed. Checked before anything is held, sent or even looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlm_sandbox.errors import PolicyError

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Call, SessionSpec

MODEL_NAME_MAX = 256
"""Characters. The longest names in use (OpenRouter, Bedrock ARNs) are below 200."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The host's rules for every session; a session's own allow-list only narrows ``models``."""

    models: frozenset[str] | None = None
    """Models that any session may name; None is no restriction beyond the session's own list."""

    max_prompt_bytes: int = 8 * 1024 * 1024
    """UTF-8 bytes of system, prefix, prompt and schema together: twice what a context of a million tokens holds."""

    max_tokens: int = 64_000
    """The most output, and the most thinking, that one call may ask for."""

    max_calls_per_second: float | None = None
    """Provider attempts per second and session, with a burst of one second."""

    daily_cost_micro: int | None = None
    """Micro-USD that all sessions of this home may spend in one UTC day."""

    secrets: Literal["off", "refuse", "redact"] = "off"
    """What to do with credentials found in an outbound prompt."""

    cache_bytes: int = 2 * 2**30
    """Bytes on disk of all kept answers together: some half a million ordinary ones."""

    cache_age_s: float = 30 * 86400.0
    """How long an answer is kept that nobody asks for again."""

    max_sessions: int | None = None
    """Sessions that may be open at once."""

    def admit_session(self, spec: SessionSpec, open_now: int) -> frozenset[str]:
        """Return the models that the session may name, or refuse it."""
        if self.max_sessions is not None and open_now >= self.max_sessions:
            raise PolicyError(
                f"{open_now} sessions are open and the policy allows {self.max_sessions}",
                hint="stop one with: rlm-sandbox stop --session ID",
            )
        allowed = frozenset({spec.model}) | spec.allow_models
        if self.models is not None and (barred := sorted(allowed - self.models)):
            raise PolicyError(
                f"the host's policy does not allow the model {barred[0]!r}",
                hint=f"allowed: {', '.join(sorted(self.models))}",
            )
        return allowed

    def check_model(self, model: str, allowed: frozenset[str]) -> None:
        """Refuse a model that the session did not name at its start."""
        if model not in allowed:
            raise PolicyError(
                f"the model {model[:MODEL_NAME_MAX]!r} is not allowed in this session",
                hint=f"allowed: {', '.join(sorted(allowed))}; start the session with --allow-model to add one",
            )

    def check_host_model(self, model: str) -> None:
        """Refuse a model that the host does not allow; for calls that the host's own side makes, which no guest can name a model in."""
        if self.models is not None and model not in self.models:
            raise PolicyError(
                f"the host's policy does not allow the model {model[:MODEL_NAME_MAX]!r}",
                hint=f"allowed: {', '.join(sorted(self.models))}",
            )

    def check_call(self, call: Call, bytes_out: int) -> None:
        """Refuse a call that is too large, or whose numbers make no sense."""
        if bytes_out > self.max_prompt_bytes:
            raise PolicyError(
                f"the prompt has {bytes_out} bytes with its system, prefix and schema; the policy allows"
                f" {self.max_prompt_bytes}",
                hint="send a smaller slice, for example with chunks()",
            )
        self._check_range("max_tokens", call.max_tokens, 1)
        self._check_range("thinking_budget", call.thinking_budget or 0, 0)

    def _check_range(self, name: str, value: int, low: int) -> None:
        if not low <= value <= self.max_tokens:
            raise PolicyError(
                f"{name}={value} is outside of {low} to {self.max_tokens}", hint=f"ask for {name} in that range"
            )
