"""Several processes on one ledger, some of which die."""

import asyncio
import sys

import pytest

from rlm_sandbox.broker.book import Outbound, Worst
from rlm_sandbox.broker.ledger import Ledger
from rlm_sandbox.broker.types import Limits
from tests.support.broker_double import account, assert_consistent, assert_within_caps, read_sums, until
from tests.support.broker_hammer import LIMITS

pytestmark = pytest.mark.component


async def _start(home, count, mark):
    command = [sys.executable, "-m", "tests.support.broker_hammer", str(home), str(count), mark]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def _watch(home, processes):
    """Read the sums from another connection, again and again, as long as anybody spends."""
    looks = 0
    while any(process.returncode is None for process in processes):
        assert_within_caps(home)
        looks += 1
        await asyncio.sleep(0.005)
    return looks


async def test_eight_processes_never_exceed_one_cap(tmp_path):
    async with account(tmp_path, limits=LIMITS):
        pass  # the account exists before anybody looks at it
    processes = [await _start(tmp_path, 100, f"p{number}") for number in range(8)]
    outputs, looks = await asyncio.gather(
        asyncio.gather(*(process.communicate() for process in processes)), _watch(tmp_path, processes)
    )
    assert [process.returncode for process in processes] == [0] * 8
    bought = sum(int(output) for output, _ in outputs)
    calls, held, cap = read_sums(tmp_path)["calls"]
    assert (calls, held, cap) == (bought, 0, 500)
    assert calls == 500
    assert looks > 10
    async with account(tmp_path, limits=LIMITS) as session:
        assert_consistent(await session.verify())


async def test_killed_processes_are_charged_and_the_living_are_left_alone(tmp_path):
    living = await Ledger.open(tmp_path)
    number = await living.open_session("s", LIMITS)
    processes = [await _start(tmp_path, 400, f"p{number}") for number in range(3)]
    await until(lambda: read_sums(tmp_path)["calls"][0])
    for victim in processes[:2]:
        victim.kill()
    output, _ = await processes[2].communicate()
    assert processes[2].returncode == 0
    assert int(output) > 0
    await living.recover()
    assert (await living.verify(number))["ok"]
    assert_within_caps(tmp_path)
    assert read_sums(tmp_path)["calls"][1] == 0
    await living.aclose()
    for victim in processes[:2]:
        await victim.wait()


async def test_an_open_attempt_of_a_living_process_is_not_charged_by_another(tmp_path):
    first, out = await Ledger.open(tmp_path), Outbound(1, 0, 1, "p", "d", "m", "k", "s", 1)
    account = await first.open_session("s", Limits())
    hold = await first.hold(account, Worst(5, 5, 5), out)
    second = await Ledger.open(tmp_path)
    assert await second.recover() == 0
    assert (await second.account(account))["calls_held"] == 1
    await first._writer.aclose()
    first._owner.release()
    assert await second.recover() == 1
    row = await second.account(account)
    assert (row["calls"], row["calls_held"], row["micro"]) == (1, 0, hold.worst.micro)
    await second.aclose()
