"""Calls are taken in a few at a time, in their order, and nobody who left is waited for."""

import asyncio

import pytest

from rlm_sandbox.broker.doorway import Doorway

pytestmark = pytest.mark.unit


async def turns(doorway, count):
    """Let so many enter at once; return in which turn of the loop each got through."""
    turn, through = 0, {}

    async def one(number):
        await doorway.enter()
        through[number] = turn

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turn += 1
    return through


async def test_a_crowd_goes_through_in_order_and_a_few_per_turn():
    through = await turns(Doorway(3), 20)
    assert list(through) == list(range(20))
    assert max(list(through.values()).count(turn) for turn in through.values()) <= 3


async def test_one_who_comes_alone_does_not_wait():
    assert await turns(Doorway(1), 1) == {0: 0}


async def test_those_who_left_take_nobodys_room():
    doorway = Doorway(1)
    await doorway.enter()
    queue = [asyncio.create_task(doorway.enter()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in queue[:9]:
        task.cancel()
    await asyncio.wait_for(queue[9], 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await turns(doorway, 1) == {0: 0}, "it is open again"
