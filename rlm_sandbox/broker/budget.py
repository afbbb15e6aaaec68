"""The worst that one attempt can cost, and how a refusal is told.

A token is at least one byte of what the model's tokenizer sees, and some see the text normalised (NFKC), which can be
longer than what was sent; so a bound of both lengths (:mod:`.text_size`) bounds the input, plus a constant for what the
provider's chat template adds around it. The output is bounded by what was asked for. The price is the highest that can apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rlm_sandbox.broker.book import HoldRefused, Worst
from rlm_sandbox.errors import BudgetExceeded, PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_sandbox.broker.text_size import TextSizes
    from rlm_sandbox.broker.types import Call, Provider, Usage

TEMPLATE_TOKENS = 512
"""Role marks and a template's built-in system prompt: the longest default one in use (Mistral Small) has about 400 tokens."""

SCHEMA_TOKENS = 1024
"""What providers add for structured output beside the schema itself: the tool-use preamble has up to about 800 tokens."""


class PriceBook(Protocol):
    """Prices by provider and model. Unknown models raise LookupError."""

    @property
    def snapshot(self) -> str:
        """Name the table's version; recorded with each attempt."""

    def bound_micro(self, provider: str, model: str, tokens_in_max: int, tokens_out_max: int) -> int:
        """Return the most micro-USD that such a request can cost, rounded up."""

    def cost_micro(self, provider: str, model: str, usage: Usage) -> int:
        """Return what the usage costs, in micro-USD."""


def priced_by(provider: Provider, book: PriceBook) -> tuple[PriceBook, str]:
    """Return the table that holds for a provider and the name it has there.

    A provider may bring a ``price_book`` of its own (a script that declares prices), and may sell under another name than the
    API it speaks (``seller``: OpenRouter, Azure).
    """
    return getattr(provider, "price_book", None) or book, getattr(provider, "seller", provider.name)


async def tokens_in_bound(call: Call, sizes: TextSizes, digests: Mapping[str, str | None]) -> int:
    """Return how many input tokens the call can be at most. ``digests`` holds the SHA-256 of its texts by name, where they are known."""
    total = TEMPLATE_TOKENS + (SCHEMA_TOKENS if call.schema or call.tools else 0)
    for name in ("system", "prefix", "prompt", "schema", "tools"):
        if text := getattr(call, name):
            total += await sizes.bound(text, digests.get(name))
    return total


def worst_case(call: Call, tokens_in: int, provider: Provider, prices: PriceBook, *, capped: bool) -> Worst:
    """Return the bound of one attempt, whose input is at most ``tokens_in`` tokens.

    Raises:
        PolicyError: the cost is capped and the model has no known price.
    """
    tokens_out = call.output_ceiling
    if not provider.priced:
        return Worst(tokens_in, tokens_out, 0)
    try:
        book, seller = priced_by(provider, prices)
        return Worst(tokens_in, tokens_out, book.bound_micro(seller, call.model, tokens_in, tokens_out))
    except LookupError:
        if capped:
            raise unpriced(provider.name, call.model) from None
        return Worst(tokens_in, tokens_out, 0, priced=False)


def unpriced(provider: str, model: str) -> PolicyError:
    """Return the error for a cost cap that could not be kept."""
    return PolicyError(
        f"the price of {model!r} at {provider} is not known, so a limit in USD could not be kept",
        hint="add the model's price to the price table, or limit calls and tokens instead of USD",
    )


def exceeded(refused: HoldRefused) -> BudgetExceeded:
    """Say which cap refused, what is left and what would fit."""
    if refused.axis == "latched":
        return BudgetExceeded(
            f"the session is shut for spending: {refused.reason}",
            hint="compare with the provider's bill, then start a new session",
        )
    if refused.axis == "deadline":
        return BudgetExceeded("the session's time limit has passed; nothing more is bought", hint="start a new session")
    left = max(0, refused.cap - refused.spent - refused.held)
    whose = "the host's daily limit" if refused.scope == "day" else "the session's limit"
    held = f", {_amount(refused.axis, refused.held)} held by calls in flight" if refused.held else ""
    return BudgetExceeded(
        f"{whose} of {_amount(refused.axis, refused.cap)} is reached: {_amount(refused.axis, refused.spent)} spent{held},"
        f" {_amount(refused.axis, left)} left, and this call could need {_amount(refused.axis, refused.need)}",
        hint=_what_fits(refused, left),
    )


def _what_fits(refused: HoldRefused, left: int) -> str:
    raise_it = {
        "calls": "rlm-sandbox budget --set N",
        "tokens": "rlm-sandbox budget --set-token-limit N",
        "micro": "rlm-sandbox budget --set-cost-limit USD",
    }[refused.axis]
    if refused.scope == "day":
        return "the limit is the host policy's; it begins anew at 00:00 UTC"
    if refused.axis == "calls" or left == 0:
        return f"raise the limit with: {raise_it}"
    return f"a call of at most {_amount(refused.axis, left)} fits (shorter prompt, smaller max_tokens); or: {raise_it}"


def _amount(axis: str, value: int) -> str:
    return f"${value / 1e6:.6f}" if axis == "micro" else f"{value} {axis}"
