"""A shared prefix is written once: the first call goes alone until its response begins."""

import asyncio

import pytest

from rlm_sandbox.broker.priming import LIFETIME_S, Priming, priming_key
from rlm_sandbox.broker.types import Call, Limits, Position
from rlm_sandbox.errors import BudgetExceeded
from tests.support.broker_double import RESET, FakeProvider, account, ask, fault, until

pytestmark = pytest.mark.unit
PREFIX = "x" * 4000


class CachingProvider(FakeProvider):
    """Knows, as a real one does, whether an entry could be read when a request arrived."""

    def __init__(self, **options):
        super().__init__(minimum=1000, **options)
        self.written = set()
        self.writes = self.reads = 0

    async def attempt(self, call, *, timeout_s, began):
        shared = (call.system, call.prefix)
        if shared in self.written:
            self.reads += 1
        else:
            self.writes += 1

        def begins():
            self.written.add(shared)
            began()

        return await super().attempt(call, timeout_s=timeout_s, began=begins)


async def batch(session, count, **details):
    asks = (session.ask(ask(f"q{n}", **details), Position(1, n)) for n in range(count))
    return await asyncio.gather(*asks, return_exceptions=True)


async def test_a_batch_of_two_hundred_costs_one_write_and_the_rest_reads(tmp_path):
    provider = CachingProvider(latency_s=0.002)
    async with account(tmp_path, provider) as session:
        await batch(session, 200, prefix=PREFIX)
        assert (provider.writes, provider.reads) == (1, 199)
        await batch(session, 20, prefix=PREFIX, sample=1)
        assert (provider.writes, provider.reads) == (1, 219)
        await batch(session, 10, prefix=PREFIX, system="other")
        assert provider.writes == 2
    assert provider.most_in_flight > 10  # and then they do fan out


@pytest.mark.parametrize("details", [{}, {"prefix": "x" * 3996}, {"prefix": PREFIX, "cache": False}])
async def test_without_an_entry_to_wait_for_nobody_waits(tmp_path, details):
    provider = CachingProvider(latency_s=0.01)
    async with account(tmp_path, provider) as session:
        await batch(session, 10, **details)
    assert provider.most_in_flight == 10


async def test_a_provider_without_a_prompt_cache_is_not_waited_for(tmp_path):
    provider = FakeProvider(latency_s=0.01)
    async with account(tmp_path, provider) as session:
        await batch(session, 10, prefix=PREFIX)
    assert provider.most_in_flight == 10


async def test_when_the_first_one_fails_one_successor_takes_its_place(tmp_path):
    async def behave(call, number):
        await asyncio.sleep(0.005)
        if number <= 2:
            raise fault("bad_request", billable="no")

    provider = CachingProvider(behave=behave)
    async with account(tmp_path, provider) as session:
        results = await batch(session, 10, prefix=PREFIX)
    assert provider.in_flight_at_begin[:3] == [1, 1, 1]
    assert sum(isinstance(result, Exception) for result in results) == 2
    assert provider.most_in_flight == 7


async def test_a_first_one_without_money_does_not_hold_up_the_others(tmp_path):
    provider = CachingProvider()
    async with account(tmp_path, provider, limits=Limits(calls=0)) as session:
        results = await batch(session, 30, prefix=PREFIX)
    assert all(isinstance(result, BudgetExceeded) for result in results)


async def test_a_first_one_that_is_cancelled_while_it_waits_hands_over(tmp_path):
    provider = CachingProvider(latency_s=0.02)
    async with account(tmp_path, provider, spec_changes={"concurrency": 1}) as session:
        blocker = asyncio.create_task(session.ask(ask("blocker"), Position(1, 0)))
        await until(lambda: provider.in_flight)
        tasks = [asyncio.create_task(session.ask(ask(f"q{n}", prefix=PREFIX), Position(1, n))) for n in range(4)]
        await asyncio.sleep(0.002)
        tasks[0].cancel()
        tasks[1].cancel()
        results = await asyncio.gather(blocker, *tasks, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "Answer",
        "CancelledError",
        "CancelledError",
        "Answer",
        "Answer",
    ]


async def test_a_response_that_began_and_broke_off_has_written_the_entry(tmp_path):
    class BreaksOff(CachingProvider):
        async def attempt(self, call, *, timeout_s, began):
            reply = await super().attempt(call, timeout_s=timeout_s, began=began)
            if len(self.calls) == 1:
                raise fault(**RESET)
            return reply

    provider = BreaksOff(latency_s=0.002)
    async with account(tmp_path, provider, sleeps=[]) as session:
        await batch(session, 10, prefix=PREFIX)
    assert provider.writes == 1


async def test_an_entry_that_was_not_used_for_five_minutes_is_written_anew(monkeypatch):
    priming, loop = Priming(), asyncio.get_running_loop()
    start, skew = loop.time(), [0.0]
    monkeypatch.setattr(loop, "time", lambda: start + skew[0])

    async def goes_alone():
        async with priming.turn("key", start + 9999) as began:
            alone = priming._entries["key"].leading
            began()
            return alone

    assert await goes_alone()
    skew[0] = LIFETIME_S - 1
    assert not await goes_alone()  # used, so it lives on
    skew[0] = 2 * LIFETIME_S - 2
    assert not await goes_alone()
    skew[0] = 4 * LIFETIME_S
    assert await goes_alone()


async def test_the_table_of_entries_does_not_grow_for_ever(monkeypatch):
    priming, loop = Priming(), asyncio.get_running_loop()
    start, skew = loop.time(), [0.0]
    monkeypatch.setattr(loop, "time", lambda: start + skew[0])
    for number in range(3000):
        skew[0] += 1
        async with priming.turn(number, start + 99_999) as began:
            began()
    assert len(priming._entries) <= 1025


def test_the_name_of_an_entry_tells_system_from_prefix():
    provider = FakeProvider(minimum=1)

    def key(system, prefix):
        return priming_key("lane", provider, Call("m", system, prefix, "q", 1, True, None, None, 0))

    assert key("abcdefgh", "ij") != key("abcdefg", "hij")
    assert key("abcdefgh", "ij") == key("abcdefgh", "ij")
