"""The response cache stays within its bounds, and what writes to it keeps its order and its promises."""

import asyncio
import os
import time

import pytest

from rlm_sandbox.broker import cache as cache_module
from rlm_sandbox.broker import keeper as keeper_module
from rlm_sandbox.broker.cache import ResponseCache
from rlm_sandbox.broker.keeper import Keeper
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.types import Position, Reply, Usage
from rlm_sandbox.broker.upkeep import sweep
from tests.support.broker_double import FakeProvider, ask, broker, spec, until

pytestmark = pytest.mark.unit
DAY = 86400.0


def keys(count):
    return [f"{n:02x}" * 32 for n in range(count)]


def entry(cache, key, *, age_s=0.0, size=0):
    """Keep an answer that was last used so long ago."""
    reply = Reply(os.urandom(size).hex(), Usage(1, 1), "m", "end_turn")
    assert cache._write(key, reply) > 0
    stamp = time.time() - age_s
    os.utime(cache._path(key), (stamp, stamp))


def test_what_nobody_used_for_long_goes_and_the_rest_stays(tmp_path):
    cache = ResponseCache(tmp_path, "session:s")
    young, old = keys(2)
    entry(cache, young, age_s=DAY)
    entry(cache, old, age_s=3 * DAY)
    assert sweep(tmp_path / "cache", bytes_max=2**30, age_s=2 * DAY).removed == 1
    assert (cache.get(young) is not None, cache.get(old)) == (True, None)


def test_too_much_goes_down_by_what_was_used_longest_ago_in_whatever_scope(tmp_path):
    one, other = ResponseCache(tmp_path, "session:s"), ResponseCache(tmp_path, "shared:t")
    names = keys(10)
    for age, key in enumerate(names):
        entry((one, other)[age % 2], key, age_s=60.0 * age, size=8000)
    total = sweep(tmp_path / "cache", bytes_max=2**30, age_s=DAY).kept_bytes
    swept = sweep(tmp_path / "cache", bytes_max=total // 2, age_s=DAY)
    assert swept.kept_bytes <= total // 2
    left = [(one, other)[age % 2].get(key) is not None for age, key in enumerate(names)]
    assert left == [True] * swept.kept + [False] * swept.removed
    assert 0 < swept.kept < 10


def test_reading_an_answer_keeps_it(tmp_path):
    cache = ResponseCache(tmp_path, "session:s")
    (key,) = keys(1)
    entry(cache, key, age_s=10 * DAY)
    assert cache.get(key) is not None
    assert sweep(tmp_path / "cache", bytes_max=2**30, age_s=DAY).removed == 0


def test_a_draft_of_a_dead_process_goes_and_one_being_written_stays(tmp_path):
    cache = ResponseCache(tmp_path, "session:s")
    folder = cache._path(keys(1)[0]).parent
    folder.mkdir()
    for name, age in ((".dead", 7200.0), (".alive", 1.0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert sweep(tmp_path / "cache", bytes_max=2**30, age_s=DAY).removed == 1
    assert [path.name for path in folder.iterdir()] == [".alive"]


async def test_the_broker_sweeps_when_it_opens_and_when_much_was_written(tmp_path):
    old = ResponseCache(tmp_path, "session:before")
    entry(old, keys(1)[0], age_s=2 * DAY)
    tight = Policy(cache_bytes=40 * 4096, cache_age_s=DAY)
    async with broker(tmp_path, FakeProvider(), policy=tight) as opened:
        await until(lambda: not old._path(keys(1)[0]).exists())
        session = await opened.open_session(spec())
        for n in range(100):
            await session.ask(ask(f"q{n}" + "x" * 2000), Position(1, n))
        await until(lambda: sum(1 for _ in (tmp_path / "cache").rglob("*.zst")) <= 40)


async def test_what_a_full_disk_refused_is_answered_from_memory_and_written_when_there_is_room(tmp_path, monkeypatch):
    full = True
    real = cache_module._appear

    def appear(path, data):
        if full:
            raise OSError(28, "no space left")
        real(path, data)

    monkeypatch.setattr(cache_module, "_appear", appear)
    provider = FakeProvider()
    async with broker(tmp_path, provider) as opened:
        session = await opened.open_session(spec())
        await session.ask(ask("one"), Position(1, 0))
        await session.close()
        session = await opened.open_session(spec())
        assert (await session.ask(ask("one"), Position(2, 0))).cached
        full = False
        await session.ask(ask("two"), Position(2, 1))
        assert len(list((tmp_path / "cache").rglob("*.zst"))) == 2
        assert opened.keeper.unwritten(session._cache._path("0")) is None
    assert len(provider.calls) == 2


async def test_what_waits_for_a_disk_is_bounded_and_forgotten_with_its_session(tmp_path, monkeypatch):
    def appear(path, data):
        raise OSError(28, "no space left")

    monkeypatch.setattr(cache_module, "_appear", appear)
    monkeypatch.setattr(keeper_module, "UNWRITTEN_MAX", 2000)
    async with broker(tmp_path, FakeProvider()) as opened:
        session = await opened.open_session(spec())
        for n in range(20):
            await session.ask(ask(f"q{n}"), Position(1, n))
        waiting = opened.keeper._unwritten
        assert 0 < sum(map(len, waiting.values())) <= 2000
        assert await opened.erase("s")
        assert not waiting


async def test_writes_are_made_in_their_order_and_a_full_disk_is_told_to_its_own_only(tmp_path):
    keeper, seen = Keeper(), []

    def write(n):
        seen.append(n)
        if n == 3:
            raise OSError(28, "no space")
        return n

    outcomes = await asyncio.gather(*(keeper.submit(lambda n=n: write(n)) for n in range(6)), return_exceptions=True)
    await keeper.aclose()
    assert seen == list(range(6))
    assert [isinstance(each, OSError) for each in outcomes] == [False, False, False, True, False, False]
