"""The broker with real providers and real prices: what a session is charged for what a server did."""

import json
from contextlib import asynccontextmanager

import pytest

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Credentials, Limits, Position, Request, Secret, SessionSpec
from rlm_sandbox.errors import BudgetExceeded, PolicyError, ProviderError
from tests.support.fault_server import Fault

pytestmark = pytest.mark.component


@asynccontextmanager
async def session(home, provider, model, credentials, **limits):
    broker = await Broker.open(home, policy=Policy(), provider_factory=create, prices=PriceBook())
    try:
        spec = SessionSpec("s", provider, model, credentials, limits=Limits(**limits), max_tokens=100)
        account = await broker.open_session(spec)
        yield account
        await account.close()
    finally:
        await broker.aclose()


def remote(server, api="anthropic"):
    url = server.anthropic_url if api == "anthropic" else server.openai_url
    return Credentials(api_key=Secret("k"), base_url=url)


def script(tmp_path, **document):
    path = tmp_path / "script.json"
    path.write_text(json.dumps(document))
    return Credentials(extra={"script": str(path)})


async def spend(account):
    for ordinal in range(20):
        await account.ask(Request(f"b{ordinal}"), Position(2, ordinal))


async def test_an_answer_costs_what_the_price_table_says(server, tmp_path):
    async with session(tmp_path, "anthropic", "claude-haiku-4-5", remote(server), cost_micro=10_000_000) as account:
        answer = await account.ask(Request("ping"), Position(1, 0))
        budget = await account.budget()
    # 11 in at 1, 7 out at 5, 3 read at 0.1, 2 written at 1.25 micro-USD, rounded up
    assert answer.cost_micro == budget.cost_micro == 49
    assert (budget.calls, budget.tokens_in, budget.tokens_out, budget.held_micro) == (1, 16, 7, 0)


@pytest.mark.parametrize("fault", ["rate_limited", "overloaded", "server_error"])
async def test_what_was_refused_is_not_charged(server, tmp_path, fault):
    server.plan = [fault]
    async with session(tmp_path, "anthropic", "claude-haiku-4-5", remote(server), cost_micro=10_000_000) as account:
        answer = await account.ask(Request("ping"), Position(1, 0))
        budget = await account.budget()
    assert (answer.attempts, budget.calls, budget.cost_micro) == (2, 1, 49)


async def test_what_may_have_been_made_is_charged_in_full(server, tmp_path):
    server.plan = ["reset_in_body"]
    async with session(tmp_path, "openai", "gpt-4o-mini", remote(server, "openai"), cost_micro=10_000_000) as account:
        answer = await account.ask(Request("ping"), Position(1, 0))
        budget = await account.budget()
    assert answer.attempts == budget.calls == 2
    # the hold of 512 + 4 tokens in and 100 out, and then 11 + 2 in, 3 read and 7 out
    assert answer.cost_micro == budget.cost_micro == 138 + 7
    assert server.billed == 1


async def test_a_spend_limit_ends_the_call_at_once(server, tmp_path):
    server.default = "spend_limit_429"
    async with session(tmp_path, "anthropic", "claude-haiku-4-5", remote(server)) as account:
        with pytest.raises(ProviderError) as caught:
            await account.ask(Request("ping"), Position(1, 0))
    assert caught.value.code == "spend_limit"
    assert sum(server.requests.values()) == 1


async def test_a_dialect_is_learnt_within_one_call(server, tmp_path):
    server.default = Fault("unsupported", {"parameter": "stream_options"})
    async with session(tmp_path, "openai", "gpt-4o-mini", remote(server, "openai")) as account:
        assert (await account.ask(Request("ping"), Position(1, 0))).text == "pong"
        assert (await account.budget()).calls == 1


async def test_a_model_without_a_price_is_refused_under_a_cap(server, tmp_path):
    with pytest.raises(PolicyError, match="price"):
        async with session(tmp_path, "anthropic", "claude-unheard-of", remote(server), cost_micro=1):
            pass


async def test_a_scripts_prices_are_charged_and_capped(tmp_path):
    rule = {"answer": "x", "usage": {"input_tokens": 100, "output_tokens": 10}}
    credentials = script(tmp_path, rules=[rule], prices={"*": {"input": 1, "output": 5}})
    async with session(tmp_path, "scripted", "scripted", credentials, cost_micro=1500) as account:
        assert (await account.ask(Request("a"), Position(1, 0))).cost_micro == 150
        with pytest.raises(BudgetExceeded):
            await spend(account)
        assert (await account.budget()).cost_micro <= 1500


async def test_a_script_without_prices_is_free_under_any_cap(tmp_path):
    async with session(tmp_path, "scripted", "scripted", Credentials(), cost_micro=0) as account:
        assert (await account.ask(Request("a"), Position(1, 0))).text
        assert (await account.budget()).cost_micro == 0
