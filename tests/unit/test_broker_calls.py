"""What an account can show of its calls, and whose failure a failure is."""

import asyncio

import pytest

from rlm_sandbox.broker.types import Limits, Position, ProviderFault, Usage
from rlm_sandbox.errors import BudgetExceeded, ProviderError
from tests.support.broker_double import OVERLOADED, RESET, FakeProvider, account, ask, fault

pytestmark = pytest.mark.unit


async def _later(value):
    if isinstance(value, ProviderFault):
        raise value
    return value


async def test_every_call_is_listed_once_with_its_attempts_and_those_that_cost_nothing(tmp_path):
    plan = [fault(**OVERLOADED), fault(**RESET), None, None]
    provider = FakeProvider(lambda call, n: _later(plan[n - 1]))
    async with account(tmp_path, provider) as session:
        await session.ask(ask("one"), Position(1, 0))
        await session.ask(ask("two"), Position(1, 1))
        await session.ask(ask("one"), Position(2, 0))
        again, two, one = await session.calls()
        latest = await session.calls(1)
    assert [each["outcome"] for each in one["attempts"]] == ["overloaded", "connection_lost", "ok"]
    assert [each["state"] for each in one["attempts"]] == ["released", "settled", "settled"]
    assert one["cost_usd"] == pytest.approx(sum(each["cost_usd"] for each in one["attempts"]))
    assert (one["cached"], one["outcome"], one["tokens_in"], one["tokens_out"]) == (False, "ok", 3, 3)
    assert len(two["attempts"]) == 1
    assert (again["cached"], again["source"], again["cost_usd"], again["attempts"]) == (True, "cache", 0, [])
    assert (again["cell"], again["ordinal"], again["tokens_in"]) == (2, 0, 3)
    assert again["request_key"] == one["request_key"]
    assert (set(again), latest) == (set(one), [again])


async def test_those_who_joined_an_identical_purchase_are_listed_as_that(tmp_path):
    async with account(tmp_path, FakeProvider(latency_s=0.02)) as session:
        await asyncio.gather(*(session.ask(ask(), Position(1, n)) for n in range(5)))
        sources = [call["source"] for call in await session.calls()]
    assert sorted(sources) == ["flight"] * 4 + ["provider"]


async def test_what_is_erased_is_not_listed_by_prompt_any_more(tmp_path):
    async with account(tmp_path, FakeProvider()) as session:
        await session.ask(ask("secret question"), Position(1, 0))
        await session.ask(ask("secret question"), Position(1, 1))
        await session._broker.erase("s")
        (left,) = await session.calls()
    assert (left["request_key"], left["prompt_sha256"], left["cached"]) == ("", "", False)


async def test_a_question_repeated_for_its_schema_that_no_longer_fits_fails_alone(tmp_path):
    """The second, longer question of the leader is over the token cap, while the first question of another still fits."""
    schema = '{"type":"object","required":["n"]}'
    texts = iter(['{"m": 1}', '{"n": 1}'])
    provider = FakeProvider(lambda call, n: _later(next(texts)), latency_s=0.01)
    # A hold is some 1,660 tokens (template, schema and 100 of output); each answer uses 4, the rejection adds a hundred to the second question.
    async with account(tmp_path, provider) as session:
        need = await _need(session, schema)
        await session.set_limits(tokens=need + 20)
        outcomes = await asyncio.gather(
            *(session.ask(ask(schema=schema), Position(1, n)) for n in range(3)), return_exceptions=True
        )
    assert [type(each).__name__ for each in outcomes] == ["BudgetExceeded", "Answer", "Answer"]
    assert [len(provider.calls), outcomes[1].text, outcomes[2].cached] == [2, '{"n": 1}', True]


async def _need(session, schema):
    """Return the tokens that the first hold of such a question takes."""
    await session.set_limits(tokens=1)
    with pytest.raises(BudgetExceeded) as refused:
        await session.ask(ask(schema=schema), Position(0, 0))
    return int(refused.value.message.rsplit("could need ", 1)[1].split()[0])


async def test_a_first_hold_that_is_refused_is_refused_to_all_without_asking_fifty_times(tmp_path):
    async with account(tmp_path, FakeProvider(), limits=Limits(calls=0)) as session:
        outcomes = await asyncio.gather(
            *(session.ask(ask(), Position(1, n)) for n in range(50)), return_exceptions=True
        )
    assert {type(each) for each in outcomes} == {BudgetExceeded}


async def test_usage_is_reported_where_it_was_and_counted_where_it_was_not(tmp_path):
    plan = [fault(**RESET), Usage(5, 3)]
    provider = FakeProvider(lambda call, n: _later(plan[n - 1]))
    async with account(tmp_path, provider) as session:
        await session.ask(ask(), Position(1, 0))
        budget = await session.budget()
        (call,) = await session.calls()
    assert (budget.tokens_in, budget.tokens_out) == (5, 3)
    assert budget.unreported_tokens > 500
    assert [each["usage_reported"] for each in call["attempts"]] == [False, True]


class Unopened(FakeProvider):
    """Needs something first, as an SDK's import or a server takes seconds."""

    is_open = False

    def __init__(self, fault=None):
        super().__init__()
        self.fault = fault
        self.gate = asyncio.Event()

    async def open(self):
        await self.gate.wait()
        if self.fault:
            raise self.fault
        self.is_open = True


async def test_nothing_is_held_for_a_provider_that_is_not_open_yet(tmp_path):
    provider = Unopened()
    async with account(tmp_path, provider) as session:
        task = asyncio.create_task(session.ask(ask(), Position(1, 0)))
        await asyncio.sleep(0.05)
        assert (await session.verify())["attempts"] == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        provider.gate.set()
        assert (await session.ask(ask("other"), Position(1, 1))).attempts == 1
        assert (await session.budget()).calls == 1


async def test_a_provider_that_cannot_be_opened_costs_nothing(tmp_path):
    provider = Unopened(ProviderFault("no certificates", code="unreachable", billable="no"))
    provider.gate.set()
    async with account(tmp_path, provider) as session:
        with pytest.raises(ProviderError, match="no certificates"):
            await session.ask(ask(), Position(1, 0))
        assert (await session.verify())["attempts"] == 0
