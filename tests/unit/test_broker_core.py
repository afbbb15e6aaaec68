"""The pipeline of a sub-call, with a provider that does what it is told."""

import asyncio
import json
from contextlib import asynccontextmanager

import anyio
import pytest

from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.types import Limits, Phase, Position, Reply, Usage
from rlm_sandbox.errors import BudgetExceeded, DeadlineError, PolicyError, ProviderError, UsageError
from tests.support.broker_double import (
    MODEL,
    OVERLOADED,
    RATE_LIMITED,
    RESET,
    FakeProvider,
    account,
    ask,
    assert_consistent,
    assert_within_caps,
    broker,
    fault,
    read_sums,
    spec,
    until,
)

pytestmark = pytest.mark.unit
HERE = Position(1, 0)


def failing(times, **details):
    async def behave(call, number):
        if number <= times:
            raise fault(**details)

    return behave


async def test_an_answer_is_charged_as_reported_and_nothing_stays_held(tmp_path):
    async with account(tmp_path, FakeProvider(lambda call, n: _later(Usage(10, 3, 20, 30)))) as session:
        answer = await session.ask(ask("hello"), HERE)
        budget = await session.budget()
        assert (answer.text, answer.cached, answer.attempts, answer.cost_micro) == ("answer to hello", False, 1, 75)
        assert (budget.calls, budget.tokens_in, budget.tokens_out, budget.cost_micro) == (1, 60, 3, 75)
        assert (budget.cache_reads, budget.cache_writes) == (20, 30)
        assert (budget.held_calls, budget.held_tokens, budget.held_micro) == (0, 0, 0)
        assert_consistent(await session.verify())


async def _later(value):
    await asyncio.sleep(0)
    return value


async def test_the_hold_is_committed_before_the_provider_is_called(tmp_path):
    seen = []
    provider = FakeProvider()
    provider.on_send = lambda: seen.append(_held(tmp_path))
    async with account(tmp_path, provider) as session:
        await session.ask(ask("hello"), HERE)
    assert seen == [(1, 512 + 5 + 100, 512 + 5 + 500)]


def _held(home):
    return tuple(held for _, held, _ in read_sums(home).values())


def held(home):
    return any(_held(home))


async def test_the_same_question_is_answered_from_the_cache_and_counted_apart(tmp_path):
    provider = FakeProvider()
    async with account(tmp_path, provider, limits=Limits(calls=1)) as session:
        first = await session.ask(ask(), HERE)
        again = await session.ask(ask(), HERE)
        budget = await session.budget()
    assert (again.text, again.cached, again.cost_micro) == (first.text, True, 0)
    assert (len(provider.calls), budget.calls, budget.cached_calls) == (1, 1, 1)


@pytest.mark.parametrize(
    "change", [{"sample": 1}, {"system": "x"}, {"prefix": "x"}, {"max_tokens": 7}, {"cache": False}]
)
async def test_another_question_is_not_answered_from_the_cache(tmp_path, change):
    provider = FakeProvider()
    async with account(tmp_path, provider) as session:
        await session.ask(ask(), HERE)
        assert not (await session.ask(ask(**change), HERE)).cached
    assert len(provider.calls) == 2


@pytest.mark.parametrize(
    "reply",
    [
        Reply("cut", Usage(1, 1), MODEL, "max_tokens"),
        Reply("cut", Usage(1, 1), MODEL, "length"),
        Reply(" ", Usage(1, 1), MODEL),
    ],
)
async def test_an_answer_that_is_not_clean_is_given_and_not_kept(tmp_path, reply):
    provider = FakeProvider(lambda call, n: _later(reply))
    async with account(tmp_path, provider) as session:
        assert (await session.ask(ask(), HERE)).stop_reason == reply.stop_reason
        assert not (await session.ask(ask(), HERE)).cached
    assert len(provider.calls) == 2


async def test_fifty_identical_requests_in_flight_are_one_request(tmp_path):
    provider = FakeProvider(latency_s=0.02)
    async with account(tmp_path, provider) as session:
        answers = await asyncio.gather(*(session.ask(ask(), Position(1, n)) for n in range(50)))
        budget = await session.budget()
    assert len(provider.calls) == 1
    assert sum(answer.cached for answer in answers) == 49
    assert (budget.calls, budget.cached_calls) == (1, 49)


async def connecting(call, number):
    """Connect as anyio does: a group of attempts that is cancelled by the first one that succeeds, in the task of the request."""
    async with anyio.create_task_group() as attempts:
        attempts.start_soon(_turns, 3, attempts.cancel_scope.cancel)
        await anyio.sleep_forever()
    await _turns(3)


async def _turns(number, then=lambda: None):
    for _ in range(number):
        await asyncio.sleep(0)
    then()


async def test_an_identical_request_that_comes_while_the_first_one_connects_shares_it(tmp_path):
    second = []

    async def behave(call, number):
        async with anyio.create_task_group() as attempts:
            attempts.cancel_scope.cancel()
            second.append(asyncio.create_task(session.ask(ask(), Position(1, 1))))
            await asyncio.sleep(0)
        await _turns(20)

    provider = FakeProvider(behave)
    async with account(tmp_path, provider) as session:
        first = await session.ask(ask(), HERE)
        assert (await second[0]).cached
        assert (await session.budget()).calls == 1
    assert not first.cached
    assert len(provider.calls) == 1


async def test_an_identical_request_that_comes_at_any_turn_of_a_purchase_shares_it(tmp_path):
    provider = FakeProvider(connecting)
    async with account(tmp_path, provider) as session:
        first = asyncio.create_task(session.ask(ask(), HERE))
        others = []
        while not first.done():
            others.append(asyncio.create_task(session.ask(ask(), Position(1, len(others) + 1))))
            await asyncio.sleep(0)
        assert all(answer.cached for answer in await asyncio.gather(*others))
        assert not (await first).cached
    assert len(provider.calls) == 1


@asynccontextmanager
async def one_sent_and_one_waiting(tmp_path):
    """Two calls, of which the second waits for the first one's slot; yields the session, both tasks, the event that lets answers come, and the provider."""
    go = asyncio.Event()

    async def behave(call, number):
        await go.wait()

    provider = FakeProvider(behave)
    async with account(tmp_path, provider, spec_changes={"concurrency": 1}) as session:
        sent = asyncio.create_task(session.ask(ask("a"), HERE))
        waiting = asyncio.create_task(session.ask(ask("b"), HERE))
        await until(lambda: provider.calls)
        yield session, sent, waiting, go, provider


async def test_a_purchase_that_was_called_off_is_not_joined(tmp_path):
    async with one_sent_and_one_waiting(tmp_path) as (session, sent, waiting, go, provider):
        waiting.cancel()
        again = asyncio.create_task(session.ask(ask("b"), HERE))
        go.set()
        assert (await sent).text == "answer to a"
        assert (await again).text == "answer to b"
    assert [call.prompt for call in provider.calls] == ["a", "b"]


async def test_five_hundred_at_once_stay_within_width_and_cap(tmp_path):
    provider = FakeProvider(latency_s=0.001)
    async with account(tmp_path, provider, limits=Limits(calls=300), spec_changes={"concurrency": 20}) as session:
        tasks = [session.ask(ask(f"q{n}"), Position(1, n)) for n in range(500)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert_within_caps(tmp_path)
        assert_consistent(await session.verify())
        budget = await session.budget()
    assert provider.most_in_flight <= 20
    assert (len(provider.calls), budget.calls) == (300, 300)
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 200


async def test_a_token_cap_is_used_up_by_what_is_spent_and_not_by_what_waits(tmp_path):
    """Each call could need 617 tokens and uses 5: ten at a time would hold more than the cap, and all of them get through."""
    provider = FakeProvider(latency_s=0.001)
    async with account(tmp_path, provider, limits=Limits(calls=None, tokens=3000)) as session:
        answers = await asyncio.gather(*(session.ask(ask(f"q{n:03}"), Position(1, n)) for n in range(200)))
        assert_within_caps(tmp_path)
    assert len(answers) == 200
    assert provider.most_in_flight <= 3000 // 616


async def test_a_refused_hold_says_which_cap_what_is_left_and_what_would_fit(tmp_path):
    async with account(tmp_path, limits=Limits(calls=None, tokens=700)) as session:
        await session.ask(ask("0123456789"), HERE)
        with pytest.raises(BudgetExceeded) as caught:
            await session.ask(ask("x" * 100), HERE)
    assert caught.value.message == (
        "the session's limit of 700 tokens is reached: 13 tokens spent, 687 tokens left, and this call could need 712 tokens"
    )
    assert "at most 687 tokens fits" in caught.value.hint


async def test_a_cost_cap_is_kept_to_the_micro_dollar(tmp_path):
    provider = FakeProvider(lambda call, n: _later(Usage(500, 100)))
    async with account(tmp_path, provider, limits=Limits(calls=None, cost_micro=5000)) as session:
        tasks = [session.ask(ask(f"q{n}"), Position(1, n)) for n in range(20)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert_within_caps(tmp_path)
        assert (await session.budget()).cost_micro == 4000  # a fifth call could need 1,014 of the 1,000 left
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 16


async def test_the_host_s_daily_limit_binds_all_sessions_together(tmp_path):
    provider = FakeProvider(lambda call, n: _later(Usage(500, 100)))
    async with broker(tmp_path, provider, policy=Policy(daily_cost_micro=3000)) as host:
        one, two = await host.open_session(spec("one")), await host.open_session(spec("two"))
        asks = [session.ask(ask(f"q{n}"), Position(1, n)) for n in range(5) for session in (one, two)]
        results = await asyncio.gather(*asks, return_exceptions=True)
        spent = [(await session.budget()).cost_micro for session in (one, two)]
    refused = [result for result in results if isinstance(result, BudgetExceeded)]
    assert sum(spent) == 2000
    assert len(refused) == 8
    assert "daily limit" in refused[0].message


async def test_a_refusal_by_the_provider_frees_its_hold_and_a_reset_is_charged_in_full(tmp_path):
    provider = FakeProvider(failing(2, **RATE_LIMITED))
    async with account(tmp_path / "a", provider, sleeps=[]) as session:
        assert (await session.ask(ask(), HERE)).attempts == 3
        assert (await session.budget()).calls == 1
    provider = FakeProvider(failing(1, **RESET))
    async with account(tmp_path / "b", provider, sleeps=[]) as session:
        assert (await session.ask(ask(), HERE)).attempts == 2
        budget = await session.budget()
        assert (budget.calls, budget.unreported_tokens) == (2, 513 + 100)
        assert budget.cost_micro == (513 + 500) + (1 + 15)
        assert budget.tokens_in == 1
        assert_consistent(await session.verify())


@pytest.mark.parametrize(
    "usage", [Usage(-1, 3), Usage("7", 3), Usage(None, 3), Usage(1, 2**60), Usage(True, 3), Usage(1.5, 2)]
)
async def test_usage_that_is_no_usage_is_charged_in_full_and_the_answer_is_given(tmp_path, usage):
    async with account(tmp_path, FakeProvider(lambda call, n: _later(usage))) as session:
        answer = await session.ask(ask(), HERE)
        budget = await session.budget()
        assert answer.text == "answer to q"
        assert answer.usage == Usage(0, 0)
        assert (budget.cost_micro, budget.unreported_tokens, budget.latched) == (1013, 613, None)


async def test_usage_above_the_hold_is_charged_as_reported_and_shuts_the_session(tmp_path):
    provider = FakeProvider(lambda call, n: _later(Usage(5000, 100)))
    async with account(tmp_path, provider, limits=Limits(calls=None, tokens=2000)) as session:
        assert (await session.ask(ask(), HERE)).text == "answer to q"
        budget = await session.budget()
        assert (budget.tokens_in, budget.tokens_out) == (5000, 100)
        assert "reported 5100 tokens" in budget.latched
        assert any("shut for spending" in warning for warning in session.take_warnings())
        with pytest.raises(BudgetExceeded, match="shut for spending"):
            await session.ask(ask("another"), HERE)
        assert_consistent(await session.verify())
    assert len(provider.calls) == 1


async def test_five_attempts_and_not_one_more(tmp_path):
    provider, sleeps = FakeProvider(failing(99, **OVERLOADED)), []
    async with account(tmp_path, provider, sleeps=sleeps) as session:
        with pytest.raises(ProviderError, match="after 5 attempts") as caught:
            await session.ask(ask(), HERE)
        assert (await session.budget()).calls == 0
    assert (len(provider.calls), len(sleeps), caught.value.code) == (5, 4, "overloaded")
    assert all(low <= pause <= 2 * low for low, pause in zip((0.25, 0.5, 1, 2), sleeps, strict=True))


@pytest.mark.parametrize(
    "details",
    [
        {"code": "spend_limit", "billable": "no", "retryable": True},
        {"code": "bad_request", "billable": "no"},
        {"code": "refusal", "billable": "yes", "usage": Usage(2, 1)},
    ],
)
async def test_what_another_attempt_cannot_mend_is_tried_once(tmp_path, details):
    provider = FakeProvider(failing(99, **details))
    async with account(tmp_path, provider) as session:
        with pytest.raises(ProviderError) as caught:
            await session.ask(ask(), HERE)
        assert (await session.budget()).cost_micro == (7 if details["billable"] == "yes" else 0)
    assert (len(provider.calls), caught.value.code) == (1, details["code"])


@pytest.mark.parametrize("delay", [86400.0, 1e300, float("inf"), 700.0])
async def test_a_retry_after_beyond_the_deadline_raises_at_once_for_all(tmp_path, delay):
    provider, sleeps = FakeProvider(failing(99, retry_after_s=delay, **RATE_LIMITED)), []
    async with account(tmp_path, provider, sleeps=sleeps, spec_changes={"concurrency": 1}) as session:
        asks = [session.ask(ask(f"q{n}"), Position(1, n)) for n in range(5)]
        results = await asyncio.gather(*asks, return_exceptions=True)
    assert [getattr(result, "code", None) for result in results] == ["rate_limited"] * 5
    assert (len(provider.calls), sleeps) == (1, [])


@pytest.mark.parametrize("delay", [float("nan"), -5.0, -float("inf"), 0.0, None])
async def test_a_retry_after_that_is_nonsense_is_no_delay(tmp_path, delay):
    provider = FakeProvider(failing(1, retry_after_s=delay, **RATE_LIMITED))
    async with account(tmp_path, provider, sleeps=[]) as session:
        assert (await session.ask(ask(), HERE)).attempts == 2


async def test_an_overloaded_provider_does_not_stop_another_session_s_provider(tmp_path):
    bad, good = FakeProvider(failing(99, **OVERLOADED)), FakeProvider()
    async with broker(tmp_path, sleeps=[]) as host:
        host._provider_factory = lambda name, credentials: bad if name == "bad" else good
        broken, sound = await host.open_session(spec("one", provider="bad")), await host.open_session(spec("two"))
        broken_spec_deadline = asyncio.create_task(broken.ask(ask("a"), HERE))
        with pytest.raises(ProviderError):
            await broken_spec_deadline
        waiting = asyncio.create_task(broken.ask(ask("b"), HERE))
        assert (await asyncio.wait_for(sound.ask(ask("c"), HERE), 1)).text == "answer to c"
        assert len(bad.calls) == 5
        waiting.cancel()


async def test_the_deadline_of_a_call_ends_a_provider_that_never_answers(tmp_path):
    async def never(call, number):
        await asyncio.sleep(3600)

    async with account(tmp_path, FakeProvider(never), spec_changes={"call_deadline_s": 0.5}) as session:
        with pytest.raises(DeadlineError):
            await session.ask(ask(), HERE)
        budget = await session.budget()
        assert (budget.calls, budget.unreported_tokens, budget.held_calls) == (1, 613, 0)


async def test_what_waits_for_its_turn_beyond_the_deadline_is_never_sent(tmp_path):
    async def never(call, number):
        await asyncio.sleep(3600)

    provider = FakeProvider(never)
    changes = {"call_deadline_s": 0.5, "concurrency": 1}
    async with account(tmp_path, provider, spec_changes=changes) as session:
        asks = [session.ask(ask(f"q{n}"), Position(1, n)) for n in range(4)]
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert (await session.budget()).calls == len(provider.calls) <= 1
    assert [type(result) for result in results] == [DeadlineError] * 4


async def test_a_batch_of_ten_thousand_gets_through(tmp_path):
    async with account(tmp_path) as session:
        asks = (session.ask(ask(f"q{n}", group=1, width=50, size=10_000), Position(1, n)) for n in range(10_000))
        answers = await asyncio.gather(*asks)
        assert [answer.text for answer in answers[:2]] == ["answer to q0", "answer to q1"]
        assert (await session.budget()).calls == 10_000


async def test_policy_refuses_before_anything_is_held_or_sent(tmp_path):
    provider = FakeProvider()
    policy = Policy(max_prompt_bytes=10_000, max_tokens=1000)
    async with account(tmp_path, provider, policy=policy) as session:
        for request in (
            ask(model="m-other"),
            ask("x" * 10_001),
            ask("é" * 5001),
            ask(system="x" * 6000, prefix="y" * 6000),
            ask(max_tokens=1001),
            ask(max_tokens=0),
            ask(max_tokens=-5),
            ask(thinking_budget=1001),
            ask(sample=-1),
            ask("\ud800"),
            ask(schema="[1]"),
            ask(schema='{"type": 7}'),
            ask(schema='{"a": NaN}'),
            ask(schema='{"a":' * 5000),
            ask(schema='{"$schema": 5}'),
            ask(schema='{"$schema": []}'),
            ask(schema='{"$ref": "#/nope"}'),
            ask(schema='{"anyOf": [{"$ref": "#nope"}]}'),
            ask(schema='{"$ref": "http://["}'),
            ask(schema='{"$ref": "file:///etc/passwd"}'),
            ask(schema='{"title": "t", "$ref": "#/title/0"}'),
            ask(schema=json.dumps({"anyOf": [{"type": "string"}] * 300 + [{"type": 7}]})),
        ):
            with pytest.raises(PolicyError):
                await session.ask(request, HERE)
        verified = await session.verify()
    assert (provider.calls, verified["attempts"]) == ([], 0)


async def test_a_listed_model_may_be_named_and_the_host_s_list_binds_at_the_start(tmp_path):
    provider = FakeProvider()
    async with broker(tmp_path, provider, policy=Policy(models=frozenset({MODEL, "m-big"}))) as host:
        session = await host.open_session(spec(allow_models=frozenset({"m-big"})))
        assert (await session.ask(ask(model="m-big"), HERE)).model == "m-big"
        with pytest.raises(PolicyError, match="m-huge"):
            await host.open_session(spec("two", allow_models=frozenset({"m-huge"})))


async def test_a_cost_limit_on_a_model_without_a_price_is_refused_at_the_start(tmp_path):
    async with broker(tmp_path) as host:
        with pytest.raises(PolicyError, match="price of 'x-unknown'"):
            await host.open_session(spec(model="x-unknown", limits=Limits(cost_micro=10)))
        session = await host.open_session(spec(model="x-unknown"))
        await session.ask(ask(), HERE)
        budget = await session.budget()
        assert (budget.cost_micro, budget.unpriced_calls) == (0, 1)
        with pytest.raises(PolicyError, match="price"):
            await session.set_limits(cost_micro=5)


async def test_a_provider_that_costs_nothing_needs_no_price(tmp_path):
    provider = FakeProvider(priced=False)
    async with account(tmp_path, provider, limits=Limits(cost_micro=0), spec_changes={"model": "x"}) as session:
        await session.ask(ask(), HERE)
        budget = await session.budget()
    assert (budget.cost_micro, budget.unpriced_calls, budget.calls) == (0, 0, 1)


async def test_limits_are_set_and_cleared_by_the_host(tmp_path):
    async with account(tmp_path, limits=Limits(calls=1)) as session:
        await session.ask(ask("a"), HERE)
        with pytest.raises(BudgetExceeded):
            await session.ask(ask("b"), HERE)
        await session.set_limits(calls=2)
        await session.ask(ask("b"), HERE)
        await session.set_limits(calls=0)
        with pytest.raises(BudgetExceeded):
            await session.ask(ask("c"), HERE)
        await session.set_limits(calls=None)
        await session.ask(ask("c"), HERE)
        for wrong in ({"calls": -1}, {"wings": 2}):
            with pytest.raises(UsageError):
                await session.set_limits(**wrong)
        assert_consistent(await session.verify())


async def test_each_warning_comes_once(tmp_path):
    limits = Limits(calls=10, tokens=100_000, token_warning=20, cost_micro=1_000_000)
    async with account(tmp_path, limits=limits) as session:
        texts = []
        for n in range(10):
            await session.ask(ask(f"question {n}"), HERE)
            texts += session.take_warnings()
    assert len(texts) == 2
    assert texts[0].startswith("26 tokens are spent")
    assert texts[1].startswith("8 of 10 calls")


async def test_the_observer_sees_what_happens(tmp_path):
    events = []
    provider = FakeProvider(failing(1, **RATE_LIMITED))
    async with account(tmp_path, provider, sleeps=[]) as session:
        await session.ask(ask(), HERE, events.append)
        await session.ask(ask(), HERE, events.append)
        with pytest.raises(PolicyError):
            await session.ask(ask(model="x"), HERE, events.append)
    assert [event.phase for event in events] == [
        Phase.QUEUED,
        Phase.SENT,
        Phase.FAULT,
        Phase.SENT,
        Phase.ANSWERED,
        Phase.QUEUED,
        Phase.CACHED,
        Phase.FAILED,
    ]
    assert (events[4].cost_micro, events[4].usage, events[7].error_kind) == (16, Usage(1, 3), "policy")
    assert events[2].error_kind == "rate_limited"


async def test_a_cancelled_call_that_was_sent_is_settled_and_its_answer_kept(tmp_path):
    go = asyncio.Event()

    async def behave(call, number):
        await go.wait()

    provider = FakeProvider(behave)
    async with account(tmp_path, provider) as session:
        task = asyncio.create_task(session.ask(ask(), HERE))
        await until(lambda: provider.calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await until(lambda: not held(tmp_path))
        assert (await session.budget()).cost_micro == 16
        assert (await session.ask(ask(), HERE)).cached
    assert len(provider.calls) == 1


async def test_an_abandoned_call_is_not_tried_again(tmp_path):
    go = asyncio.Event()

    async def behave(call, number):
        await go.wait()
        raise fault(**RESET)

    provider = FakeProvider(behave)
    async with account(tmp_path, provider, sleeps=[]) as session:
        task = asyncio.create_task(session.ask(ask(), HERE))
        await until(lambda: provider.calls)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        await until(lambda: not held(tmp_path))
    assert len(provider.calls) == 1


async def test_a_cancelled_call_that_waits_is_called_off(tmp_path):
    async with one_sent_and_one_waiting(tmp_path) as (session, sent, waiting, go, provider):
        waiting.cancel()
        await asyncio.sleep(0.01)
        go.set()
        await sent
        assert (await session.budget()).calls == 1
    assert [call.prompt for call in provider.calls] == ["a"]


@pytest.mark.parametrize("victim", [0, 3])
async def test_cancelling_one_of_those_who_wait_leaves_the_others_their_answer(tmp_path, victim):
    go = asyncio.Event()

    async def behave(call, number):
        await go.wait()

    provider = FakeProvider(behave)
    async with account(tmp_path, provider) as session:
        tasks = [asyncio.create_task(session.ask(ask(), Position(1, n))) for n in range(5)]
        await until(lambda: provider.calls)
        tasks[victim].cancel()
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(victim), asyncio.CancelledError)
    assert {result.text for result in results} == {"answer to q"}
    assert len(provider.calls) == 1


async def test_one_account_s_empty_purse_is_not_another_s(tmp_path):
    provider = FakeProvider(latency_s=0.01)
    async with broker(tmp_path, provider) as host:
        poor = await host.open_session(spec("poor", limits=Limits(calls=0), cache_scope="shared"))
        rich = await host.open_session(spec("rich", cache_scope="shared"))
        refused, answered = await asyncio.gather(poor.ask(ask(), HERE), rich.ask(ask(), HERE), return_exceptions=True)
        assert isinstance(refused, BudgetExceeded)
        assert answered.text == "answer to q"
        assert (await poor.ask(ask(), HERE)).cached


async def test_scopes_keep_sessions_apart_unless_they_share_one_on_purpose(tmp_path):
    provider = FakeProvider()
    async with broker(tmp_path, provider) as host:
        names = {"one": None, "two": None, "three": "team", "four": "team", "five": "session:one"}
        sessions = [await host.open_session(spec(name, cache_scope=scope)) for name, scope in names.items()]
        cached = [(await session.ask(ask(), HERE)).cached for session in sessions]
    assert cached == [False, False, False, True, False]


async def test_closing_settles_what_is_in_flight_and_those_who_wait_learn_it(tmp_path, monkeypatch):
    monkeypatch.setattr("rlm_sandbox.broker.account.CLOSE_GRACE_S", 0.02)

    async def never(call, number):
        await asyncio.sleep(3600)

    provider = FakeProvider(never)
    async with broker(tmp_path, provider) as host:
        session = await host.open_session(spec())
        task = asyncio.create_task(session.ask(ask(), HERE))
        await until(lambda: provider.calls)
        await session.close()
        with pytest.raises(DeadlineError, match="closed"):
            await task
        await session.close()
        with pytest.raises(UsageError, match="closed"):
            await session.ask(ask(), HERE)
        again = await host.open_session(spec())
        budget = await again.budget()
    assert (budget.calls, budget.held_calls, budget.unreported_tokens) == (1, 0, 613)
    assert provider.closed


async def test_a_reopened_session_has_its_account_its_caps_and_its_answers(tmp_path):
    provider = FakeProvider()
    async with account(tmp_path, provider, limits=Limits(calls=5)) as session:
        await session.ask(ask(), HERE)
        await session.set_limits(calls=7)
    async with account(tmp_path, provider, limits=Limits(calls=5)) as session:
        assert (await session.ask(ask(), HERE)).cached
        budget = await session.budget()
        assert (budget.calls, budget.limit) == (1, 7)
    async with account(tmp_path, provider, limits=Limits(calls=9)) as session:
        assert (await session.budget()).limit == 9
    assert len(provider.calls) == 1


async def test_the_history_tells_times_sizes_and_digests_and_no_text(tmp_path):
    provider = FakeProvider(failing(1, **RESET))
    async with account(tmp_path, provider, sleeps=[]) as session:
        await session.ask(ask("a secret question"), Position(3, 4))
        history = await session.history(10)
    assert [(entry["attempt"], entry["outcome"], entry["usage_reported"]) for entry in history] == [
        (2, "ok", True),
        (1, "connection_lost", False),
    ]
    assert (history[0]["cell"], history[0]["ordinal"], history[0]["prices"]) == (3, 4, "flat")
    assert "secret question" not in str(history)
    assert history[0]["bytes_out"] == len("a secret question")


async def test_calls_per_second_are_bounded(tmp_path):
    provider = FakeProvider()
    loop = asyncio.get_running_loop()
    times = []
    provider.on_send = lambda: times.append(loop.time())
    async with account(tmp_path, provider, policy=Policy(max_calls_per_second=50)) as session:
        await asyncio.gather(*(session.ask(ask(f"q{n}"), Position(1, n)) for n in range(70)))
    assert times[-1] - times[0] >= 18 / 50  # a burst of one second's worth, then one every 20 ms


async def test_an_open_session_cannot_be_opened_twice_and_the_number_is_bounded(tmp_path):
    async with broker(tmp_path, policy=Policy(max_sessions=1)) as host:
        session = await host.open_session(spec("one"))
        with pytest.raises(UsageError):
            await host.open_session(spec("one"))
        with pytest.raises(PolicyError, match="1 sessions are open"):
            await host.open_session(spec("two"))
        await session.close()
        await host.open_session(spec("two"))
