"""Prices: exact, rounded up, and never above the bound that was held for them."""

from decimal import Decimal
from fractions import Fraction

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import Usage as ListedUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.types import Usage
from rlm_sandbox.errors import UsageError

pytestmark = pytest.mark.unit

BOOK = PriceBook()
MODELS = [
    (provider.id, model.id)
    for provider in providers
    if provider.id in {"anthropic", "openai"}
    for model in provider.models
]
EVERY_MODEL = [(provider.id, model.id) for provider in providers for model in provider.models]


def priced(models):
    for provider, model in models:
        try:
            BOOK.bound_micro(provider, model, 1, 1)
        except LookupError:
            continue
        yield provider, model


PRICED = list(priced(EVERY_MODEL))
TOKENS = st.integers(0, 2_000_000)


def test_most_models_of_the_table_have_a_price():
    assert len(PRICED) > 0.7 * len(EVERY_MODEL)


@pytest.mark.parametrize(
    ("model", "usage", "micro"),
    [
        ("claude-haiku-4-5", Usage(1_000_000, 0), 1_000_000),
        ("claude-haiku-4-5", Usage(0, 1_000_000), 5_000_000),
        ("claude-haiku-4-5", Usage(0, 0, 1_000_000, 0), 100_000),
        ("claude-haiku-4-5", Usage(0, 0, 0, 1_000_000), 1_250_000),
        ("claude-haiku-5-5", Usage(100_000, 1), 10_001),
        ("claude-haiku-5-5", Usage(100_001, 1), 50_003),  # the whole request at the upper tier, rounded up
        ("claude-haiku-5-5", Usage(1, 0, 100_000, 0), 5_001),  # tiers count cached tokens
        ("claude-haiku-5-5", Usage(1, 0), 1),
    ],
)
def test_a_price_is_what_the_provider_lists(model, usage, micro):
    assert BOOK.cost_micro("anthropic", model, usage) == micro


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PRICED), TOKENS, TOKENS, st.data())
def test_no_usage_within_its_bounds_costs_more_than_the_bound(model, tokens_in, tokens_out, data):
    read = data.draw(st.integers(0, tokens_in))
    write = data.draw(st.integers(0, tokens_in - read))
    plain = data.draw(st.integers(0, tokens_in - read - write))
    usage = Usage(plain, data.draw(st.integers(0, tokens_out)), read, write)
    assert 0 <= BOOK.cost_micro(*model, usage) <= BOOK.bound_micro(*model, tokens_in, tokens_out)


def test_the_bound_holds_at_every_tier_of_every_model():
    for provider, model in PRICED:
        for tokens in (0, 1, 32_000, 100_000, 100_001, 128_001, 200_001, 272_001, 512_001, 1_000_001):
            bound = BOOK.bound_micro(provider, model, tokens, 1000)
            for usage in (Usage(tokens, 1000), Usage(0, 1000, tokens, 0), Usage(0, 1000, 0, tokens)):
                assert BOOK.cost_micro(provider, model, usage) <= bound, (provider, model, usage)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(set(PRICED) & set(MODELS))), TOKENS, TOKENS, st.integers(0, 50_000), st.integers(0, 50_000)
)
def test_costs_agree_with_the_tables_own_calculator(model, plain, out, read, write):
    listed = genai_prices.calc_price(
        ListedUsage(
            input_tokens=plain + read + write, output_tokens=out, cache_read_tokens=read, cache_write_tokens=write
        ),
        model[1],
        provider_id=model[0],
    )
    exact = Fraction(listed.total_price) * 1_000_000
    assert 0 <= BOOK.cost_micro(*model, Usage(plain, out, read, write)) - exact < 1


@pytest.mark.parametrize(
    ("provider", "model"), [("anthropic", "claude-unheard-of"), ("local", "x"), ("openai", "text-embedding-3-small")]
)
def test_a_model_without_a_price_is_a_lookup_error(provider, model):
    with pytest.raises(LookupError):
        BOOK.bound_micro(provider, model, 1, 1)
    with pytest.raises(LookupError):
        BOOK.cost_micro(provider, model, Usage(1, 1))


def test_a_table_of_the_users_wins():
    book = PriceBook({"anthropic/claude-haiku-4-5": {"input": "2.5", "output": 4}, "mine": {"input": 0, "output": 0}})
    assert book.cost_micro("anthropic", "claude-haiku-4-5", Usage(2, 1)) == 9
    assert book.bound_micro("local", "mine", 10**9, 10**9) == 0


def test_a_table_may_name_any_model():
    book = PriceBook({"*": {"input": 1, "output": 1}, "scripted/special": {"input": 3, "output": 3}})
    assert book.cost_micro("scripted", "anything", Usage(1, 1)) == 2
    assert book.cost_micro("scripted", "special", Usage(1, 1)) == 6


def test_tiers_of_a_table_hold_for_the_whole_request():
    tier = {"above": 100, "input": 10, "cache_read": 1}
    book = PriceBook({"m": {"input": 1, "output": 2, "request": "0.01", "tiers": [tier]}})
    assert book.cost_micro("p", "m", Usage(100, 1)) == 100 + 2 + 10_000
    assert book.cost_micro("p", "m", Usage(101, 1)) == 1010 + 2 + 10_000
    assert book.bound_micro("p", "m", 101, 1) == 1010 + 2 + 10_000


@pytest.mark.parametrize(
    "entry",
    [
        {"input": 1},
        {"input": -1, "output": 1},
        {"input": "NaN", "output": 1},
        {"input": float("inf"), "output": 1},
        {"input": True, "output": 1},
        {"input": "one", "output": 1},
        {"input": 10_000_000, "output": 1},
        {"input": 1, "output": 1, "inputs": 2},
        {"input": 1, "output": 1, "tiers": [{"above": -5}]},
        {"input": 1, "output": 1, "tiers": 3},
    ],
)
def test_a_price_that_is_none_is_refused(entry):
    with pytest.raises(UsageError):
        PriceBook({"m": entry})


def test_the_snapshot_names_the_table_and_the_users_changes():
    plain, own = PriceBook().snapshot, PriceBook({"m": {"input": 1, "output": 1}}).snapshot
    assert plain == f"genai-prices {genai_prices.__version__}"
    assert own.startswith(plain)
    assert own != PriceBook({"m": {"input": 2, "output": 1}}).snapshot


def test_a_snapshot_replaced_by_other_code_changes_nothing():
    from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot  # noqa: PLC0415

    set_custom_snapshot(DataSnapshot(providers=[], from_auto_update=True))
    try:
        assert PriceBook().cost_micro("anthropic", "claude-haiku-4-5", Usage(1_000_000, 0)) == Decimal(1_000_000)
    finally:
        set_custom_snapshot(None)
