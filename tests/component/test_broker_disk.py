"""A ledger that cannot be written: nothing is bought on credit, and what was bought is not lost."""

import asyncio
import json
import sqlite3
import subprocess
import sys

import pytest

from rlm_sandbox.broker.types import Limits, Position
from rlm_sandbox.errors import PrerequisiteError
from tests.support.broker_double import FakeProvider, account, ask, assert_consistent, until

pytestmark = pytest.mark.component
FULL = (512 + 6) + 100


async def _run(home, moment):
    command = [sys.executable, "-m", "tests.support.broker_full_disk", str(home), moment]
    done = await asyncio.to_thread(subprocess.run, command, timeout=60, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


async def test_on_a_full_disk_nothing_is_sent(tmp_path):
    said = await _run(tmp_path, "before")
    assert said == {"doomed": "prerequisite", "next": "prerequisite", "sent": ["before"]}
    async with account(tmp_path, limits=Limits(calls=10)) as session:
        assert (await session.budget()).calls == 1
        assert_consistent(await session.verify())


async def test_a_disk_that_fills_after_the_answer_costs_the_full_hold_and_not_the_answer(tmp_path):
    said = await _run(tmp_path, "after")
    assert said == {"doomed": "answer to doomed", "next": "prerequisite", "sent": ["before", "doomed"]}
    async with account(tmp_path, limits=Limits(calls=10)) as session:
        budget = await session.budget()
        assert (budget.calls, budget.held_calls, budget.unreported_tokens) == (2, 0, FULL)
        assert_consistent(await session.verify())


async def test_when_the_disk_has_room_again_the_settlement_lands(tmp_path):
    said = await _run(tmp_path, "freed")
    assert (said["doomed"], said["next"], said["calls"]) == ("answer to doomed", "prerequisite", 2)
    assert said["after"] == "answer to after"
    async with account(tmp_path, limits=Limits(calls=10)) as session:
        budget = await session.budget()
        assert (budget.calls, budget.unreported_tokens, budget.tokens_in) == (3, 0, 6 + 6 + 5)
        assert_consistent(await session.verify())


@pytest.fixture
def lock(tmp_path):
    holder = []

    def take():
        db = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        holder.append(db)
        return db

    yield take
    for db in holder:
        db.close()


async def test_a_locked_ledger_refuses_before_anything_is_sent(tmp_path, lock):
    provider = FakeProvider()
    async with account(tmp_path, provider) as session:
        session._broker.ledger._writer._busy_s = 0.05
        db = lock()
        with pytest.raises(PrerequisiteError, match="locked") as caught:
            await session.ask(ask(), Position(1, 0))
        assert "ledger.db" in caught.value.hint
        assert provider.calls == []
        assert (await session.budget()).calls == 0  # reading goes on
        db.execute("ROLLBACK")
        assert (await session.ask(ask(), Position(1, 0))).text == "answer to q"


async def test_a_ledger_locked_after_the_answer_delivers_it_and_settles_later(tmp_path, lock):
    provider = FakeProvider()
    async with account(tmp_path, provider) as session:
        ledger = session._broker.ledger
        ledger._writer._busy_s = 0.05
        locks = []
        provider.on_send = lambda: locks.append(lock())
        assert (await session.ask(ask(), Position(1, 0))).text == "answer to q"
        assert ledger.unlanded == 1
        assert (await session.budget()).held_calls == 1
        locks[0].execute("ROLLBACK")
        await until(lambda: not ledger.unlanded)
        budget = await session.budget()
        assert (budget.calls, budget.held_calls, budget.tokens_in) == (1, 0, 1)
        assert_consistent(await session.verify())


async def test_a_short_lock_is_waited_for(tmp_path, lock):
    async with account(tmp_path) as session:
        db = lock()
        task = asyncio.create_task(session.ask(ask(), Position(1, 0)))
        await asyncio.sleep(0.1)
        assert not task.done()
        db.execute("ROLLBACK")
        assert (await task).text == "answer to q"


async def test_a_cache_that_cannot_be_written_costs_nothing_while_the_broker_lives(tmp_path, caplog):
    provider = FakeProvider()
    async with account(tmp_path, provider) as session:
        (tmp_path / "cache").write_text("not a folder")
        for _ in range(2):
            assert (await session.ask(ask(), Position(1, 0))).text == "answer to q"
        assert (await session.budget()).calls == 1
    assert "is kept in memory" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000])
async def test_a_ledger_that_is_none_says_what_to_do_with_it(tmp_path, damage):
    (tmp_path / "ledger.db").write_bytes(damage)
    if not damage:
        with sqlite3.connect(tmp_path / "ledger.db") as db:
            db.execute("CREATE TABLE migrations (wrong)")
    with pytest.raises(PrerequisiteError) as caught:
        async with account(tmp_path):
            pass
    assert "move it away" in caught.value.hint
