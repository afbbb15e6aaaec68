"""Widths, turns, rate limits, gates and pauses."""

import asyncio
import math

import pytest

from rlm_sandbox.broker.lanes import COOL_S, PAUSE_AFTER, Lane, sane_retry_after
from rlm_sandbox.broker.limiter import GateClosed, Limiter

pytestmark = pytest.mark.unit


class Track:
    """Runs jobs through a limiter and notes their order and how many were at work at once."""

    def __init__(self, limiter):
        self.limiter = limiter
        self.order = []
        self.now = {}
        self.most = {}
        self.tasks = []
        self.end = {}

    def start(self, session, *, group=0, width=0, count=1, deadline=None):
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self._job(session, group, width, deadline)))

    async def _job(self, session, group, width, deadline):
        at = asyncio.get_running_loop().time() + 60 if deadline is None else deadline
        async with self.limiter.slot(session, group, width, at):
            self.order.append(session)
            for name in (session, (session, group), "all"):
                self.now[name] = self.now.get(name, 0) + 1
                self.most[name] = max(self.most.get(name, 0), self.now[name])
            await asyncio.sleep(0.002)
            for name in (session, (session, group), "all"):
                self.now[name] -= 1

    async def finish(self):
        return await asyncio.gather(*self.tasks, return_exceptions=True)


def limiter_with(host=100, **sessions):
    limiter = Limiter(host)
    for name, width in sessions.items():
        limiter.add_session(name, width, Lane(host))
    return limiter


async def test_the_smallest_of_batch_session_and_host_binds():
    track = Track(limiter_with(host=7, a=5, b=5))
    track.start("a", group=1, width=3, count=20)
    track.start("a", group=2, width=9, count=20)
    track.start("b", group=3, count=20)
    await track.finish()
    assert track.most["a", 1] == 3
    assert track.most["a"] == 5
    assert track.most["all"] == 7


async def test_sessions_take_turns_whatever_the_length_of_their_queues():
    track = Track(limiter_with(host=2, big=50, small=50))
    track.start("big", count=200)
    await asyncio.sleep(0)
    track.start("small", count=10)
    await track.finish()
    assert track.order.index("small") <= 4
    last_small = max(place for place, name in enumerate(track.order) if name == "small")
    assert last_small <= 24


async def test_batches_of_one_session_take_turns():
    limiter, order = limiter_with(host=1, s=1), []

    async def job(group):
        async with limiter.slot("s", group, 0, asyncio.get_running_loop().time() + 60):
            order.append(group)
            await asyncio.sleep(0)

    await asyncio.gather(*(job(1) for _ in range(20)), *(job(2) for _ in range(5)))
    assert order[1:11].count(2) == 5


async def test_within_a_batch_the_order_is_the_program_s():
    limiter, order = limiter_with(host=3, s=3), []

    async def job(number):
        async with limiter.slot("s", 1, 0, asyncio.get_running_loop().time() + 60):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(job(number) for number in range(50)))
    assert order == list(range(50))


async def test_cancelling_who_waits_and_who_has_just_been_called_leaks_no_slot():
    limiter = limiter_with(host=2, s=2)
    track = Track(limiter)
    track.start("s", count=50)
    for turn in range(30):
        await asyncio.sleep(0)
        track.tasks[(turn * 7) % 50].cancel()
    await track.finish()
    assert (limiter._in_flight, limiter._sessions["s"].in_flight, limiter._sessions["s"].lane.in_flight) == (0, 0, 0)
    assert limiter._sessions["s"].groups == {}
    again = Track(limiter)
    again.start("s", count=4)
    assert await again.finish() == [None] * 4


async def test_groups_that_are_done_leave_nothing_behind():
    limiter = limiter_with(host=4, s=4)
    track = Track(limiter)
    for number in range(300):
        track.start("s", group=number, width=1)
    await track.finish()
    assert limiter._sessions["s"].groups == {}
    assert not limiter._sessions["s"].turn


async def test_a_waiter_gives_up_at_its_deadline():
    limiter = limiter_with(host=1, s=1)
    loop = asyncio.get_running_loop()
    async with limiter.slot("s", 0, 0, loop.time() + 60):
        with pytest.raises(TimeoutError):
            async with limiter.slot("s", 0, 0, loop.time() + 0.02):
                pass
    assert limiter._in_flight == 0


async def test_a_gate_fails_those_whose_deadline_lies_before_its_end_and_holds_the_others():
    limiter = limiter_with(host=1, s=1)
    lane, loop = limiter._sessions["s"].lane, asyncio.get_running_loop()
    track = Track(limiter)
    async with limiter.slot("s", 0, 0, loop.time() + 60):
        track.start("s", deadline=loop.time() + 0.05)
        track.start("s", deadline=loop.time() + 60)
        await asyncio.sleep(0)
        lane.rate_limited(loop.time(), 0.1)
        limiter.gate_moved(lane)
    closed = loop.time()
    results = await track.finish()
    assert isinstance(results[0], GateClosed)
    assert results[1] is None
    assert loop.time() - closed >= 0.09


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_lane_starts_at_full_width(clock):
    assert Lane(64, clock).width == 64


def test_a_rate_limit_halves_what_is_in_flight_once_per_burst_and_success_restores_it(clock):
    lane = Lane(64, clock)
    lane.in_flight = 40
    for _ in range(30):
        lane.rate_limited(999.0, None)
    assert lane.width == 20
    clock.now += 1
    lane.in_flight = 20
    lane.rate_limited(1000.5, None)
    assert lane.width == 10
    for _ in range(10):
        lane.succeeded()
    assert 10.9 < lane.width < 11.1
    for _ in range(10_000):
        lane.succeeded()
    assert lane.width == 64


def test_an_overload_narrows_nothing_and_five_in_a_row_are_followed_by_a_pause(clock):
    lane = Lane(64, clock)
    for _ in range(PAUSE_AFTER - 1):
        lane.overloaded()
    assert lane.admits()
    lane.succeeded()
    for _ in range(PAUSE_AFTER):
        lane.overloaded()
    assert (lane.width, lane.admits()) == (64, False)
    clock.now += COOL_S
    lane.in_flight = 63
    assert lane.admits()


def test_an_outage_makes_no_pause_longer_than_the_first(clock):
    lane = Lane(64, clock)
    for _ in range(100):
        clock.now = max(clock.now, lane.lift_at)
        lane.overloaded()
        assert lane.lift_at - clock.now <= COOL_S


def test_a_gate_longer_than_any_call_is_doubted_after_a_minute(clock):
    lane = Lane(64, clock)
    lane.rate_limited(999.0, 86_400.0)
    assert lane.hopeless(clock.now + 600)
    clock.now += 59
    assert lane.hopeless(clock.now + 600)
    clock.now += 2
    assert lane.admits()
    assert not lane.hopeless(clock.now + 600)


def test_a_gate_within_reach_is_kept_to_its_end(clock):
    lane = Lane(64, clock)
    lane.rate_limited(999.0, 300.0)
    clock.now += 299
    assert not lane.admits()
    clock.now += 1
    assert lane.admits()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, None),
        (math.nan, None),
        (-1.0, None),
        (math.inf, 86_400.0),
        (1e30, 86_400.0),
        (0, 0.0),
        ("7", None),
        (2.5, 2.5),
    ],
)
def test_a_delay_that_is_nonsense_is_none_and_an_endless_one_is_a_day(given, taken):
    assert sane_retry_after(given) == taken
