"""Between the broker's integers and the public documents' decimals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.models import BudgetState

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Budget

MICRO = 1_000_000


def usd(micro: int) -> float:
    """Return micro-USD as USD."""
    return round(micro / MICRO, 6)


def micro(amount: float) -> int:
    """Return USD as micro-USD, rounded down: a cap is never raised by rounding."""
    return int(amount * MICRO + 1e-6)


def budget_state(budget: Budget) -> BudgetState:
    """Return the public shape of an account."""
    return BudgetState(
        calls=budget.calls,
        limit=budget.limit,
        tokens_in=budget.tokens_in,
        tokens_out=budget.tokens_out,
        cache_reads=budget.cache_reads,
        cache_writes=budget.cache_writes,
        token_limit=budget.token_limit,
        token_warning=budget.token_warning,
        warned_tokens=budget.warned_tokens,
        cost_usd=usd(budget.cost_micro),
        cost_limit=None if budget.cost_limit_micro is None else usd(budget.cost_limit_micro),
        held_usd=usd(budget.held_micro),
        held_calls=budget.held_calls,
        held_tokens=budget.held_tokens,
        cached_calls=budget.cached_calls,
        unreported_tokens=budget.unreported_tokens,
        time_limit_s=budget.time_limit_s,
        time_left_s=None if budget.time_left_s is None else round(budget.time_left_s, 3),
        latched=budget.latched,
    )
