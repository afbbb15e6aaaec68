"""The response cache stays within its bounds, and what writes to it keeps its order and its promises."""

import asyncio
import contextlib
import os
import sqlite3
import time

import pytest

from rlm_sandbox.broker import keeper as keeper_module
from rlm_sandbox.broker.cache import ResponseCache
from rlm_sandbox.broker.keeper import Keeper
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.types import Position, Reply, Usage
from tests.support.broker_double import FakeProvider, ask, broker, spec, until

pytestmark = pytest.mark.unit
DAY = 86400.0


def keys(count):
    return [f"{n:02x}" * 32 for n in range(count)]


@pytest.fixture
async def keeper(tmp_path):
    keeper = Keeper(tmp_path)
    yield keeper
    await keeper.aclose()


def query(home, sql, *values):
    with contextlib.closing(sqlite3.connect(home / "cache" / "answers.db", isolation_level=None)) as db:
        return db.execute(sql, values).fetchall()


def used(home, key, age_s):
    query(home, "UPDATE answers SET used = ? WHERE key = ?", time.time() - age_s, key)


async def entry(home, cache, key, *, age_s=0.0, size=0):
    """Keep an answer that was last used so long ago."""
    assert await cache.put(key, Reply(os.urandom(size).hex(), Usage(1, 1), "m", "end_turn"))
    used(home, key, age_s)


async def test_the_file_has_the_documented_shape(tmp_path, keeper):
    await ResponseCache(keeper, "session:s").put("k", Reply("text", Usage(1, 1), "m", "end_turn"))
    columns = query(tmp_path, "SELECT name, type FROM pragma_table_info('answers')")
    assert columns == [("scope", "TEXT"), ("key", "TEXT"), ("used", "REAL"), ("body", "BLOB")]
    assert query(tmp_path, "PRAGMA user_version") == [(1,)]


async def test_what_nobody_used_for_long_goes_and_the_rest_stays(tmp_path, keeper):
    cache = ResponseCache(keeper, "session:s")
    young, old = keys(2)
    await entry(tmp_path, cache, young, age_s=DAY)
    await entry(tmp_path, cache, old, age_s=3 * DAY)
    swept = keeper.sweep(bytes_max=2**30, age_s=2 * DAY)
    assert (swept.removed, swept.kept) == (1, 1)
    assert (cache.get(young) is not None, cache.get(old)) == (True, None)


async def test_too_much_goes_down_by_what_was_used_longest_ago_in_whatever_scope(tmp_path, keeper, monkeypatch):
    monkeypatch.setattr(keeper_module, "BATCH", 1)
    one, other = ResponseCache(keeper, "session:s"), ResponseCache(keeper, "shared:t")
    names = keys(10)
    for age, key in enumerate(names):
        await entry(tmp_path, (one, other)[age % 2], key, age_s=60.0 * age, size=8000)
    total = keeper.sweep(bytes_max=2**30, age_s=DAY).kept_bytes
    swept = keeper.sweep(bytes_max=total // 2, age_s=DAY)
    assert swept.kept_bytes <= total // 2
    left = [(one, other)[age % 2].get(key) is not None for age, key in enumerate(names)]
    assert left == [True] * swept.kept + [False] * swept.removed
    assert 0 < swept.kept < 10


async def test_what_went_gives_its_room_back(tmp_path, keeper):
    cache = ResponseCache(keeper, "session:s")
    for key in keys(100):
        await entry(tmp_path, cache, key, age_s=3 * DAY, size=20_000)
    before = (tmp_path / "cache" / "answers.db").stat().st_size
    assert keeper.sweep(bytes_max=2**30, age_s=DAY).removed == 100
    assert (tmp_path / "cache" / "answers.db").stat().st_size < before / 10


async def test_reading_an_answer_keeps_it(tmp_path, keeper):
    cache = ResponseCache(keeper, "session:s")
    (key,) = keys(1)
    await entry(tmp_path, cache, key, age_s=10 * DAY)
    assert cache.get(key) is not None
    await keeper.aclose()
    assert keeper.sweep(bytes_max=2**30, age_s=DAY).removed == 0


async def test_nothing_of_a_forgotten_scope_is_left_in_any_file(tmp_path, keeper):
    mine, other = ResponseCache(keeper, "session:s"), ResponseCache(keeper, "session:t")
    text = os.urandom(3000).hex()  # does not compress to something else than itself
    await mine.put(keys(1)[0], Reply(text, Usage(1, 1), "model-of-s", "end_turn"))
    await other.put(keys(1)[0], Reply("kept", Usage(1, 1), "m", "end_turn"))
    ((body,),) = query(tmp_path, "SELECT body FROM answers WHERE scope = 'session:s'")
    assert await asyncio.to_thread(keeper.forget, "session:s")
    assert not await asyncio.to_thread(keeper.forget, "session:s")
    for file in (tmp_path / "cache").iterdir():
        raw = file.read_bytes()
        assert body[100:200] not in raw, file
        assert b"session:s" not in raw, file
    assert (mine.get(keys(1)[0]), other.get(keys(1)[0]).text) == (None, "kept")


async def test_the_broker_sweeps_when_it_opens_and_when_much_was_written(tmp_path):
    before = Keeper(tmp_path)
    await entry(tmp_path, ResponseCache(before, "session:before"), keys(1)[0], age_s=2 * DAY)
    await before.aclose()
    tight = Policy(cache_bytes=40 * 4096, cache_age_s=DAY)
    async with broker(tmp_path, FakeProvider(), policy=tight) as opened:
        await until(lambda: query(tmp_path, "SELECT * FROM answers") == [])
        session = await opened.open_session(spec())
        for n in range(400):
            await session.ask(ask(f"q{n}" + os.urandom(600).hex()), Position(1, n))
        await until(lambda: query(tmp_path, "SELECT count(*) FROM answers")[0][0] < 400)
        await until(lambda: (tmp_path / "cache" / "answers.db").stat().st_size <= 44 * 4096)


def refuse_writes(monkeypatch):
    """A disk that takes nothing, until the returned function is called."""
    real, full = Keeper._commit, [True]

    def commit(self, db, jobs):
        if full:
            raise OSError(28, "no space left")
        real(self, db, jobs)

    monkeypatch.setattr(Keeper, "_commit", commit)
    return full.clear


async def test_what_a_full_disk_refused_is_answered_from_memory_and_written_when_there_is_room(tmp_path, monkeypatch):
    free = refuse_writes(monkeypatch)
    provider = FakeProvider()
    async with broker(tmp_path, provider) as opened:
        session = await opened.open_session(spec())
        await session.ask(ask("one"), Position(1, 0))
        await session.close()
        session = await opened.open_session(spec())
        assert (await session.ask(ask("one"), Position(2, 0))).cached
        free()
        await session.ask(ask("two"), Position(2, 1))
        assert query(tmp_path, "SELECT count(*) FROM answers") == [(2,)]
        assert not opened.keeper._unwritten
    assert len(provider.calls) == 2


async def test_what_waits_for_a_disk_is_bounded_and_forgotten_with_its_session(tmp_path, monkeypatch):
    refuse_writes(monkeypatch)
    monkeypatch.setattr(keeper_module, "UNWRITTEN_MAX", 2000)
    async with broker(tmp_path, FakeProvider()) as opened:
        session = await opened.open_session(spec())
        for n in range(20):
            await session.ask(ask(f"q{n}"), Position(1, n))
        waiting = opened.keeper._unwritten
        assert 0 < sum(map(len, waiting.values())) <= 2000
        assert await opened.erase("s")
        assert not waiting


async def test_answers_that_came_together_are_committed_together_and_each_is_told(tmp_path, keeper):
    commits = []
    real = Keeper._commit
    keeper._commit = lambda db, jobs: (commits.append(len(jobs)), real(keeper, db, jobs))
    sizes = await asyncio.gather(*(keeper.submit("s", f"{n}", bytes(n)) for n in range(200)))
    assert sizes == list(range(200))
    assert sum(commits) == 200
    assert len(commits) < 100
