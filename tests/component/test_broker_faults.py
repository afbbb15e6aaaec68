"""Every way a provider can fail, through the real SDKs and a real connection: what it costs, what the caller sees, what is kept."""

from contextlib import suppress

import pytest

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Credentials, Limits, Position, Secret, SessionSpec
from rlm_sandbox.errors import BudgetExceeded, DeadlineError, ProviderError
from tests.support.broker_double import FlatPrices, ask, assert_consistent, assert_within_caps
from tests.support.fault_server import Fault, FaultServer

pytestmark = pytest.mark.component
FREE, REPORTED, IN_FULL = "free", "reported", "in full"


class EveryPrice(FlatPrices):
    def bound_micro(self, provider, model, tokens_in_max, tokens_out_max):
        return tokens_in_max + 5 * tokens_out_max


@pytest.fixture(params=["anthropic", "openai"])
def api(request):
    return request.param


@pytest.fixture
async def world(api, tmp_path, monkeypatch):
    """A broker with a session on a server that misbehaves; back-off takes no time."""
    async with FaultServer() as server:
        broker = await Broker.open(tmp_path, policy=Policy(), provider_factory=create, prices=EveryPrice())

        async def no_sleep(seconds):
            assert seconds < 20

        broker.attempts.sleep = no_sleep
        broker.attempts.jitter = lambda: 0.0  # the pauses, though not slept, must fit the deadline
        url = server.anthropic_url if api == "anthropic" else server.openai_url
        spec = SessionSpec(
            session="s",
            provider=api,
            model="claude-haiku-4-5",
            credentials=Credentials(Secret("sk-test-key"), url),
            limits=Limits(calls=20, tokens=100_000, cost_micro=500_000),
            max_tokens=100,
            call_deadline_s=4.0,
        )
        session = await broker.open_session(spec)
        yield server, session, tmp_path
        assert_within_caps(tmp_path)
        assert_consistent(await session.verify())
        await broker.aclose()


def charged(history):
    """What the first attempt was charged: nothing, what was reported, or its whole hold."""
    first = history[-1]
    if first["state"] == "released":
        return FREE
    return REPORTED if first["usage_reported"] else IN_FULL


RETRIED = {
    "rate_limited": FREE,
    "overloaded": FREE,
    "server_error": None,
    "gateway": None,
    "reset": IN_FULL,
    "reset_in_body": IN_FULL,
    "cut": IN_FULL,
    "hang_up": IN_FULL,
    "truncated_json": IN_FULL,
    "truncated_event": IN_FULL,
}
"""Faults after which the call goes on; None where the provider may have billed and adapters may know better."""


@pytest.mark.parametrize("fault", RETRIED)
async def test_a_passing_fault_is_followed_by_the_answer(world, fault):
    server, session, _ = world
    server.plan = [fault]
    answer = await session.ask(ask(), Position(1, 0))
    history = await session.history(9)
    assert (answer.text, answer.attempts, len(history)) == ("pong", 2, 2)
    assert RETRIED[fault] in {None, charged(history)}
    assert (await session.budget()).calls == sum(entry["state"] == "settled" for entry in history)
    assert (await session.ask(ask(), Position(1, 0))).cached


FINAL = {
    "spend_limit_429": FREE,
    "spend_limit_400": FREE,
    "too_long": FREE,
    "html": IN_FULL,
    "refusal": REPORTED,
    "thinking_only": REPORTED,
}


@pytest.mark.parametrize("fault", FINAL)
async def test_a_lasting_fault_is_raised_after_one_attempt(world, fault, api):
    server, session, _ = world
    server.plan = [fault]
    with pytest.raises(ProviderError):
        await session.ask(ask(), Position(1, 0))
    history = await session.history(9)
    assert (len(history), charged(history)) == (1, FINAL[fault])
    assert not (await session.ask(ask(), Position(1, 0))).cached


@pytest.mark.parametrize("counts", [{"missing": True}, {"input": -5}, {"input": "many"}, {"output": 1.5}])
async def test_usage_that_is_no_usage_is_charged_in_full(world, counts):
    server, session, _ = world
    server.plan = [Fault("usage", counts)]
    with suppress(ProviderError):  # an adapter may refuse such an answer, or give its text
        assert (await session.ask(ask(), Position(1, 0))).text == "pong"
    history = await session.history(9)
    assert charged(history) == IN_FULL
    assert (await session.budget()).latched is None


async def test_usage_above_the_hold_shuts_the_session(world):
    server, session, _ = world
    server.plan = [Fault("usage", {"input": 50_000})]
    assert (await session.ask(ask(), Position(1, 0))).text == "pong"
    budget = await session.budget()
    assert budget.tokens_in >= 50_000
    assert "shut" in session.take_warnings()[0]
    with pytest.raises(BudgetExceeded, match="shut"):
        await session.ask(ask("another"), Position(1, 1))
    assert sum(server.requests.values()) == 1


async def test_a_storm_of_rate_limits_ends_after_five_attempts_and_costs_nothing(world):
    server, session, _ = world
    server.default = "rate_limited"
    with pytest.raises(ProviderError) as caught:
        await session.ask(ask(), Position(1, 0))
    assert (caught.value.code, sum(server.requests.values())) == ("rate_limited", 5)
    budget = await session.budget()
    assert (budget.calls, budget.cost_micro, budget.held_micro) == (0, 0, 0)


@pytest.mark.parametrize("header", ["86400", "99999999999999999999", "Wed, 21 Oct 2099 07:28:00 GMT"])
async def test_a_hostile_delay_is_refused_at_once(world, header):
    server, session, _ = world
    server.plan = [Fault("rate_limited", {"retry_after": header})]
    with pytest.raises(ProviderError):
        await session.ask(ask(), Position(1, 0))
    assert sum(server.requests.values()) == 1


@pytest.mark.parametrize("header", ["-1", "NaN", "soon", "", "Wed, 21 Oct 1999 07:28:00 GMT", "1e400x"])
async def test_a_delay_that_is_nonsense_is_none(world, header):
    server, session, _ = world
    server.plan = [Fault("rate_limited", {"retry_after": header})]
    assert (await session.ask(ask(), Position(1, 0))).attempts == 2


@pytest.mark.parametrize("fault", ["drip", "silent"])
async def test_an_answer_that_never_ends_is_ended_by_the_call_s_deadline(world, fault):
    server, session, _ = world
    server.default = fault
    with pytest.raises((DeadlineError, ProviderError)):
        await session.ask(ask(), Position(1, 0))
    budget = await session.budget()
    assert (budget.held_calls, budget.tokens_in) == (0, 0)
    assert budget.unreported_tokens >= 600


async def test_a_bomb_is_refused_and_charged_in_full(world):
    server, session, _ = world
    server.default = "gzip_bomb"
    with pytest.raises(ProviderError):
        await session.ask(ask(), Position(1, 0))
    assert charged(await session.history(9)) == IN_FULL


async def test_a_truncated_answer_says_so_and_is_not_kept(world):
    server, session, _ = world
    server.plan = ["truncated_answer"]
    answer = await session.ask(ask(), Position(1, 0))
    assert answer.stop_reason in {"max_tokens", "length"}
    assert not (await session.ask(ask(), Position(1, 0))).cached
