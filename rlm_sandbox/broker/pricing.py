"""What tokens cost: the most they can, before a call, and what they did, after it.

Two functions, one promise: for any usage within the bounds given to ``bound_micro``, ``cost_micro`` is not more. Both round up to
whole micro-USD. Prices come from the table shipped inside ``genai-prices`` (its version is the snapshot that is
recorded with each attempt; the package's own updater is never started, so nothing is fetched), or from a table of the
user's, which wins. A model that neither knows is a LookupError: there is no default price.

One US dollar per million tokens is one micro-USD per token, so a rate in USD/MTok multiplies tokens directly.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rlm_sandbox.broker.types import Usage

RATE_MAX = Decimal(1_000_000)
"""USD per million tokens: a dollar a token. Beyond it is a mistake in a unit."""

AHEAD = timedelta(days=1)
"""A price announced to change within this time counts for bounds, so that a hold made before midnight covers a call billed after it."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-USD per token, exact, for requests of more than ``above`` input tokens."""

    above: int
    input: Fraction
    output: Fraction
    cache_read: Fraction
    cache_write: Fraction
    request: Fraction = Fraction(0)
    """Micro-USD for the request itself."""

    @property
    def dearest_input(self) -> Fraction:
        """The most an input token can cost, whatever the cache does with it."""
        return max(self.input, self.cache_read, self.cache_write)


@dataclass(frozen=True, slots=True)
class Price:
    """One price: its tiers in ascending order, the first from zero. The tier holds for the whole request."""

    tiers: tuple[Rates, ...]

    def cost(self, usage: Usage) -> Fraction:
        """Return the cost in micro-USD of exactly this usage."""
        rates = next(tier for tier in reversed(self.tiers) if tier.above == 0 or usage.total_in > tier.above)
        return (
            rates.input * usage.input_tokens
            + rates.output * usage.output_tokens
            + rates.cache_read * usage.cache_read_tokens
            + rates.cache_write * usage.cache_write_tokens
            + rates.request
        )

    def bound(self, tokens_in: int, tokens_out: int) -> Fraction:
        """Return the most that a request within these numbers can cost."""
        within = [tier for tier in self.tiers if tier.above == 0 or tokens_in > tier.above]
        return max(t.dearest_input * tokens_in + t.output * tokens_out + t.request for t in within)


class PriceBook:
    """Prices by provider and model.

    ``table`` maps ``"model"`` or ``"provider/model"`` (``"*"`` is any model) to ``{"input": USD/MTok, "output": USD/MTok}`` with
    optional ``cache_read`` and ``cache_write`` (default: as input), ``request`` (USD for each request) and ``tiers``, a list of the same with
    ``above`` (input tokens). Numbers or decimal strings. Raises UsageError where it is not that.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._table = {name.lower(): _own_price(name, entry) for name, entry in (table or {}).items()}
        mark = hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.snapshot = f"genai-prices {version('genai-prices')}" + (f" + table {mark}" if table else "")
        self._known: Any = None
        self._read: dict[int, tuple[Any, Price]] = {}

    def bound_micro(self, provider: str, model: str, tokens_in_max: int, tokens_out_max: int) -> int:
        """Return the most that a call can cost, in micro-USD. Raises LookupError."""
        return math.ceil(max(price.bound(tokens_in_max, tokens_out_max) for price in self._possible(provider, model)))

    def cost_micro(self, provider: str, model: str, usage: Usage) -> int:
        """Return what a call cost, in micro-USD. Raises LookupError."""
        return math.ceil(self._current(provider, model).cost(usage))

    def _current(self, provider: str, model: str) -> Price:
        own = self._own(provider, model)
        if own is not None:
            return own
        info = self._find(provider, model)
        return self._price(model, info.get_prices(datetime.now(UTC)))

    def _possible(self, provider: str, model: str) -> Iterable[Price]:
        """Every price that may hold for a call that begins now."""
        own = self._own(provider, model)
        if own is not None:
            return [own]
        info = self._find(provider, model)
        now = datetime.now(UTC)
        candidates = [info.get_prices(now), info.get_prices(now + AHEAD)]
        if isinstance(info.prices, list):  # by the hour of the day: the call may end in another one
            candidates += [entry.prices for entry in info.prices if hasattr(entry.constraint, "start_time")]
        return [self._price(model, entry) for entry in candidates]

    def _price(self, model: str, listed: Any) -> Price:
        """Translate a listed price once: its numbers are exact fractions, and every call asks three times."""
        known = self._read.get(id(listed))
        if known is None or known[0] is not listed:
            known = self._read[id(listed)] = listed, _price(model, listed)
        return known[1]

    def _own(self, provider: str, model: str) -> Price | None:
        for name in (f"{provider}/{model}", model, f"{provider}/*", "*"):
            if (found := self._table.get(name.lower())) is not None:
                return found
        return None

    def _find(self, provider: str, model: str) -> Any:
        if self._known is None:
            # Not data_snapshot.get_snapshot(): another user of the package in this process may have replaced that one.
            from genai_prices.data import providers  # noqa: PLC0415 - 0.2 s, needed only under a USD cap
            from genai_prices.data_snapshot import DataSnapshot  # noqa: PLC0415

            self._known = DataSnapshot(providers=providers, from_auto_update=False)
        _, info = self._known.find_provider_model(model, None, provider, None)
        return info


def _price(model: str, listed: Any) -> Price:
    """Translate a listed price. One without rates for both directions is none for a text model: LookupError."""
    if listed.input_mtok is None or listed.output_mtok is None:
        raise LookupError(f"the price table has no price per input and output token for {model!r}")
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "output_reasoning_mtok")
    starts = {tier.start for name in names for tier in getattr(getattr(listed, name), "tiers", ())}
    return Price(tuple(_listed_rates(listed, start) for start in sorted({0} | starts)))


def _listed_rates(listed: Any, above: int) -> Rates:
    def at(name: str, default: Fraction) -> Fraction:
        value = getattr(listed, name)
        if value is None:
            return default
        if isinstance(value, Decimal):
            return Fraction(value)
        reached = [tier.price for tier in value.tiers if tier.start <= above and above > 0]
        return Fraction(reached[-1] if reached else value.base)

    plain = at("input_mtok", Fraction(0))
    return Rates(
        above=above,
        input=plain,
        # Usage does not tell reasoning tokens apart; where they have a price of their own, the dearer one covers both.
        output=max(at("output_mtok", Fraction(0)), at("output_reasoning_mtok", Fraction(0))),
        cache_read=at("cache_read_mtok", plain),
        cache_write=at("cache_write_mtok", plain),
        request=at("requests_kcount", Fraction(0)) * 1000,
    )


def _own_price(name: str, entry: Mapping[str, Any]) -> Price:
    try:
        tiers = [dict(entry, above=0), *({**entry, **tier} for tier in entry.get("tiers", ()))]
        rates = [_own_rates(tier) for tier in tiers]
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"the price of {name!r} is not valid: {why}",
            hint='give USD per million tokens: {"input": 1.00, "output": 5.00}',
        ) from error
    return Price(tuple(sorted(rates, key=lambda tier: tier.above)))


def _own_rates(entry: Mapping[str, Any]) -> Rates:
    unknown = set(entry) - {"input", "output", "cache_read", "cache_write", "request", "tiers", "above"}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is not known")
    plain = _rate(entry["input"])
    above = entry["above"]
    if type(above) is not int or above < 0:
        raise ValueError("above is a number of tokens")
    return Rates(
        above=above,
        input=plain,
        output=_rate(entry["output"]),
        cache_read=_rate(entry.get("cache_read", entry["input"])),
        cache_write=_rate(entry.get("cache_write", entry["input"])),
        request=_rate(entry.get("request", 0)) * 1_000_000,
    )


def _rate(value: Any) -> Fraction:
    rate = (
        Decimal(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else Decimal("NaN")
    )
    if not rate.is_finite() or not 0 <= rate <= RATE_MAX:
        raise ValueError(f"{value!r} is no price")
    return Fraction(rate)
