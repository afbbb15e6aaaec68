"""Any interleaving of calls, faults, cancellations and restarts keeps every cap, and never buys twice what was answered."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_sandbox.broker.types import Limits, Position, Reply, Usage
from rlm_sandbox.errors import RLMError
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
    fault,
)

pytestmark = pytest.mark.unit

OUTCOMES = {
    "answer": lambda: None,
    "dear": lambda: Usage(300, 100),
    "cached": lambda: Usage(1, 1, 200, 50),
    "cut": lambda: Reply("cut", Usage(3, 100), MODEL, "max_tokens"),
    "rate_limited": lambda: fault(**RATE_LIMITED),
    "rate_limited_at_once": lambda: fault(retry_after_s=0.0, **RATE_LIMITED),
    "overloaded": lambda: fault(**OVERLOADED),
    "reset": lambda: fault(**RESET),
    "refusal": lambda: fault("refusal", billable="yes", usage=Usage(5, 2)),
    "bad": lambda: fault("bad_request", billable="no"),
    "bad_usage": lambda: Usage(-1, 5),
}
STEP = st.tuples(
    st.sampled_from(sorted(OUTCOMES)),
    st.integers(0, 3),  # turns of the loop before the outcome
)
CALL = st.tuples(
    st.integers(0, 7),  # which prompt
    st.booleans(),  # cancelled?
    st.integers(0, 12),  # after so many turns of the loop
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lives=st.lists(
        st.tuples(st.lists(CALL, max_size=12), st.lists(STEP, min_size=1, max_size=12)), min_size=1, max_size=3
    ),
    calls=st.none() | st.integers(0, 12),
    tokens=st.none() | st.integers(0, 4000),
    micro=st.none() | st.integers(0, 8000),
    width=st.integers(1, 5),
)
def test_any_interleaving_keeps_the_caps(lives, calls, tokens, micro, width):
    limits = Limits(calls=calls, tokens=tokens, cost_micro=micro)
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(_live(Path(home), lives, limits, width))


async def _live(home, lives, limits, width):
    answered = set()
    for plan, script in lives:
        provider = FakeProvider(_scripted(script, answered, home))
        changes = {"concurrency": width, "call_deadline_s": 30.0}
        async with account(home, provider, limits=limits, sleeps=[], spec_changes=changes) as session:
            # Lanes cool down in real time, which has no part in what is looked at here.
            session._lane.overloaded = lambda *_: None
            assert (await session.budget()).held_calls == 0
            tasks = [asyncio.create_task(_call(session, home, *call)) for call in plan]
            await asyncio.gather(*tasks)
            assert_within_caps(home)
            assert_consistent(await session.verify())
        assert provider.most_in_flight <= width


def _scripted(script, answered, home):
    async def behave(call, number):
        assert call.prompt not in answered, "bought twice"
        assert_within_caps(home)
        outcome, turns = script[(number - 1) % len(script)]
        for _ in range(turns):
            await asyncio.sleep(0)
        result = OUTCOMES[outcome]()
        if isinstance(result, Exception):
            raise result
        if not isinstance(result, Reply):
            answered.add(call.prompt)
        return result

    return behave


async def _call(session, home, prompt, cancelled, turns):
    task = asyncio.ensure_future(session.ask(ask(f"p{prompt}"), Position(1, prompt)))
    if cancelled:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    try:
        answer = await task
    except (RLMError, asyncio.CancelledError):
        return
    assert answer.text in {f"answer to p{prompt}", "cut"}
    assert_within_caps(home)
