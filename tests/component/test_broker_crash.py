"""``kill -9`` at every edge of a call: nothing is forgotten, nothing that was answered is bought again."""

import asyncio
import signal
import subprocess
import sys

import pytest

from rlm_sandbox.broker.types import Limits, Position
from tests.support.broker_crash import EDGES
from tests.support.broker_double import FakeProvider, account, ask, assert_consistent, assert_within_caps

pytestmark = pytest.mark.component

BOUGHT = 6 + 15
"""``doomed`` at its reported usage."""

IN_FULL = (512 + 6) + 500
"""``doomed`` at its full hold."""

OUTCOME = {
    # edge: (calls charged, micro-USD charged, answer kept)
    "before_hold": (0, 0, False),
    "held": (1, IN_FULL, False),
    "sent": (1, IN_FULL, False),
    "answered": (1, IN_FULL, False),
    "stored": (1, IN_FULL, True),
    "settling": (1, IN_FULL, True),
    "settled": (1, BOUGHT, True),
    "replied": (1, BOUGHT, True),
}


@pytest.mark.parametrize("edge", EDGES)
async def test_after_a_kill_the_account_is_whole(tmp_path, edge):
    command = [sys.executable, "-m", "tests.support.broker_crash", str(tmp_path), edge]
    process = await asyncio.to_thread(subprocess.run, command, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    assert_within_caps(tmp_path)
    calls, micro, kept = OUTCOME[edge]
    provider = FakeProvider()
    async with account(tmp_path, provider, limits=Limits(calls=10, tokens=100_000, cost_micro=100_000)) as session:
        budget = await session.budget()
        assert (budget.calls, budget.held_calls, budget.held_tokens, budget.held_micro) == (1 + calls, 0, 0, 0)
        assert budget.cost_micro == 6 + 15 + micro
        assert_consistent(await session.verify())
        assert (await session.ask(ask("before"), Position(1, 0))).cached
        assert (await session.ask(ask("doomed"), Position(1, 1))).cached == kept
        assert_consistent(await session.verify())
    assert len(provider.calls) == (0 if kept else 1)
