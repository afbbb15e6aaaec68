"""Any order of holds, settlements, releases, cap changes, clock jumps, crashes and restarts keeps the books."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from rlm_sandbox.broker.book import Charge, HoldRefused, Outbound, Worst
from rlm_sandbox.broker.ledger import Ledger
from rlm_sandbox.broker.types import Limits, Usage
from tests.support.broker_double import read_sums

pytestmark = pytest.mark.unit
OUT = Outbound(1, 0, 1, "fake", "fake", "m", "k", "s", 1)
SMALL = st.integers(0, 60)
CAP = st.none() | st.integers(0, 400)
COLUMNS = ("calls_cap", "tokens_cap", "micro_cap")


class Books(RuleBasedStateMachine):
    """A ledger beside a model of it in a few dictionaries."""

    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.now = 1_800_000_000.0
        self.calls = self.tokens = self.micro = 0
        self.open = {}
        self.latched = self.declared = False
        self.day_spent = {}

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @initialize(calls=CAP, tokens=CAP, micro=CAP, day=CAP)
    def begin(self, calls, tokens, micro, day):
        self.caps = {"calls_cap": calls, "tokens_cap": tokens, "micro_cap": micro}
        self.day_cap = day
        self.given = Limits(calls=calls, tokens=tokens, cost_micro=micro)
        self._open()

    def _open(self):
        async def work():
            self.ledger = await Ledger.open(self.home, clock=lambda: self.now)
            await self.ledger.set_day_cap(self.day_cap)
            self.account = await self.ledger.open_session("s", self.given)

        self.run(work())

    def _fits(self, worst):
        spent = {"calls_cap": self.calls, "tokens_cap": self.tokens, "micro_cap": self.micro}
        held = {
            "calls_cap": len(self.open),
            "tokens_cap": sum(hold.worst.tokens for hold, _ in self.open.values()),
            "micro_cap": sum(hold.worst.micro for hold, _ in self.open.values()),
        }
        need = {"calls_cap": 1, "tokens_cap": worst.tokens, "micro_cap": worst.micro}
        fits = all(cap is None or spent[name] + held[name] + need[name] <= cap for name, cap in self.caps.items())
        day = self._day()
        day_held = sum(hold.worst.micro for hold, on in self.open.values() if on == day)
        day_fits = self.day_cap is None or self.day_spent.get(day, 0) + day_held + worst.micro <= self.day_cap
        return fits and day_fits and not self.latched

    def _day(self):
        return int(self.now // 86_400)

    @rule(target=holds, tokens_in=SMALL, tokens_out=SMALL, micro=SMALL)
    def hold(self, tokens_in, tokens_out, micro):
        worst = Worst(tokens_in, tokens_out, micro)
        fits = self._fits(worst)
        try:
            hold = self.run(self.ledger.hold(self.account, worst, OUT))
        except HoldRefused:
            assert not fits
            return None
        assert fits
        self.open[hold.attempt] = (hold, self._day())
        return hold

    def _spend(self, hold, tokens, micro):
        _, day = self.open.pop(hold.attempt)
        self.calls += 1
        self.tokens += tokens
        self.micro += micro
        self.day_spent[day] = self.day_spent.get(day, 0) + micro

    @rule(hold=consumes(holds), share=st.floats(0, 1), reads=SMALL)
    def settle(self, hold, share, reads):
        if hold is None or hold.attempt not in self.open:
            return
        tokens_in, tokens_out = int(hold.worst.tokens_in * share), int(hold.worst.tokens_out * share)
        reads = min(reads, tokens_in)
        usage, micro = Usage(tokens_in - reads, tokens_out, reads), int(hold.worst.micro * share)
        self.run(self.ledger.settle(hold, Charge("ok", usage, micro)))
        self._spend(hold, tokens_in + tokens_out, micro)

    @rule(hold=consumes(holds))
    def settle_in_full(self, hold):
        if hold is None or hold.attempt not in self.open:
            return
        self.run(self.ledger.settle(hold, Charge("reset")))
        self._spend(hold, hold.worst.tokens, hold.worst.micro)

    @rule(hold=consumes(holds), more=st.integers(1, 50))
    def settle_above_the_hold(self, hold, more):
        if hold is None or hold.attempt not in self.open:
            return
        self.run(
            self.ledger.settle(hold, Charge("ok", Usage(hold.worst.tokens_in, hold.worst.tokens_out + more), 1000))
        )
        self._spend(hold, hold.worst.tokens + more, 1000)
        self.latched = self.declared = True

    @rule(hold=consumes(holds))
    def release(self, hold):
        if hold is None or hold.attempt not in self.open:
            return
        self.run(self.ledger.release(hold, "refused"))
        self.open.pop(hold.attempt)

    @rule(hold=holds)
    def settle_again(self, hold):
        if hold is not None and hold.attempt not in self.open:
            self.run(self.ledger.settle(hold, Charge("ok", Usage(1, 1), 1)))

    @rule(name=st.sampled_from(COLUMNS), cap=CAP)
    def change_a_cap(self, name, cap):
        self.run(self.ledger.set_limits(self.account, {name: cap}))
        self.caps[name] = cap
        self.declared = True

    @rule(seconds=st.sampled_from([1, 86_400, -86_400, -5]))
    def the_clock_jumps(self, seconds):
        self.now += seconds
        self.run(self.ledger.set_day_cap(self.day_cap))

    @rule()
    def crash_and_restart(self):
        """What a kill leaves behind: the writer's thread ends and the owner's lock is gone."""
        self.run(self.ledger.aclose())
        for hold, _ in list(self.open.values()):
            self._spend(hold, hold.worst.tokens, hold.worst.micro)
        self._open()

    @invariant()
    def sums_agree_and_caps_hold(self):
        if not hasattr(self, "ledger"):
            return
        sums = read_sums(self.home)
        assert sums["calls"][:2] == (self.calls, len(self.open))
        assert sums["tokens"][:2] == (self.tokens, sum(hold.worst.tokens for hold, _ in self.open.values()))
        assert sums["micro"][:2] == (self.micro, sum(hold.worst.micro for hold, _ in self.open.values()))
        if not self.declared:
            assert all(cap is None or spent + held <= cap for spent, held, cap in sums.values())

    def teardown(self):
        if hasattr(self, "ledger"):
            proof = self.run(self.ledger.verify(self.account))
            assert proof["ok"], proof["mismatches"]
            self.run(self.ledger.aclose())
        self.loop.close()
        shutil.rmtree(self.home)


Books.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBooks = Books.TestCase
