"""Prices of private models come from a file in the state folder."""

from __future__ import annotations

import pytest

from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.errors import UsageError
from rlm_sandbox.settings.model import load_prices

pytestmark = pytest.mark.unit


def test_a_table_in_the_state_folder_prices_a_private_model(tmp_path):
    (tmp_path / "prices.toml").write_text('["openai/mine"]\ninput = 1.0\noutput = 2.0\n')
    book = PriceBook(load_prices(tmp_path))
    assert book.bound_micro("openai", "mine", 1_000_000, 1_000_000) >= 3_000_000


def test_without_a_table_a_private_model_has_no_price(tmp_path):
    with pytest.raises(LookupError):
        PriceBook(load_prices(tmp_path)).bound_micro("openai", "mine-of-nobody", 1, 1)


def test_a_table_that_is_no_toml_is_refused_by_name(tmp_path):
    (tmp_path / "prices.toml").write_text("this is = = not")
    with pytest.raises(UsageError, match=r"prices\.toml"):
        load_prices(tmp_path)
