"""The ledger by itself: sums, caps, warnings, the schema's own refusals and the proof."""

import asyncio
import sqlite3

import pytest

from rlm_sandbox.broker.audit import verify
from rlm_sandbox.broker.book import Charge, HoldRefused, Outbound, Worst
from rlm_sandbox.broker.ledger import Ledger
from rlm_sandbox.broker.migrations import MIGRATIONS, migrate
from rlm_sandbox.broker.types import Limits, Usage
from rlm_sandbox.broker.writer import LedgerUnavailable, connect

pytestmark = pytest.mark.unit
OUT = Outbound(1, 0, 1, "fake", "fake", "m", "k" * 64, "d" * 64, 3, "flat")


@pytest.fixture
async def ledger(tmp_path):
    opened = await Ledger.open(tmp_path)
    yield opened
    await opened.aclose()


async def test_a_hold_that_fits_exactly_is_made_and_one_more_token_is_not(ledger):
    account = await ledger.open_session("s", Limits(calls=None, tokens=100))
    with pytest.raises(HoldRefused) as caught:
        await ledger.hold(account, Worst(60, 41, 0), OUT)
    assert (caught.value.axis, caught.value.cap, caught.value.need) == ("tokens", 100, 101)
    assert not caught.value.may_fit_later
    await ledger.hold(account, Worst(60, 40, 0), OUT)
    with pytest.raises(HoldRefused) as caught:
        await ledger.hold(account, Worst(1, 0, 0), OUT)
    assert caught.value.may_fit_later


@pytest.mark.parametrize("limits", [Limits(calls=0), Limits(calls=None, tokens=0), Limits(calls=None, cost_micro=0)])
async def test_a_cap_of_zero_buys_nothing(ledger, limits):
    account = await ledger.open_session("s", limits)
    with pytest.raises(HoldRefused):
        await ledger.hold(account, Worst(1, 0, 1), OUT)


async def test_settling_twice_or_after_a_release_changes_nothing(ledger):
    account = await ledger.open_session("s", Limits())
    hold = await ledger.hold(account, Worst(10, 10, 10), OUT)
    await ledger.settle(hold, Charge("ok", Usage(1, 2), 3))
    await ledger.settle(hold, Charge("ok", Usage(9, 9), 9))
    await ledger.release(hold, "refused")
    row = await ledger.account(account)
    assert (row["calls"], row["tokens_in"], row["tokens_out"], row["micro"]) == (1, 1, 2, 3)
    two = [ledger.settle(await ledger.hold(account, Worst(10, 10, 10), OUT), Charge("ok", Usage(1, 2), 3))]
    two.append(two[0])
    await asyncio.gather(*two)
    assert (await ledger.account(account))["calls"] == 2
    assert (await ledger.verify(account))["ok"]


async def test_two_orders_for_one_attempt_in_one_transaction_count_once(ledger):
    account = await ledger.open_session("s", Limits())
    hold = await ledger.hold(account, Worst(10, 10, 10), OUT)
    await asyncio.gather(ledger.settle(hold, Charge("ok", Usage(1, 2), 3)), ledger.settle(hold, Charge("reset")))
    row = await ledger.account(account)
    assert (row["calls"], row["micro"], row["micro_held"]) == (1, 3, 0)


async def test_a_cancelled_hold_is_given_back(ledger):
    account = await ledger.open_session("s", Limits(calls=1))
    task = asyncio.create_task(ledger.hold(account, Worst(1, 1, 1), OUT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        row = await ledger.account(account)
        if not row["calls_held"]:
            break
        await asyncio.sleep(0.01)
    assert (row["calls"], row["calls_held"]) == (0, 0)
    await ledger.hold(account, Worst(1, 1, 1), OUT)


async def test_the_deadline_is_wall_time_and_survives_a_restart(tmp_path):
    now = [1000.0]
    first = await Ledger.open(tmp_path, clock=lambda: now[0])
    account = await first.open_session("s", Limits(deadline=1010.0))
    await first.settle(await first.hold(account, Worst(1, 1, 1), OUT), Charge("ok", Usage(1, 1), 1))
    await first.aclose()
    now[0] = 1010.0
    second = await Ledger.open(tmp_path, clock=lambda: now[0])
    account = await second.open_session("s", Limits(deadline=9999.0))
    with pytest.raises(HoldRefused, match="deadline"):
        await second.hold(account, Worst(1, 1, 1), OUT)
    await second.set_limits(account, {"deadline_ms": 1_020_000})
    await second.hold(account, Worst(1, 1, 1), OUT)
    await second.aclose()


async def test_a_day_s_cap_is_that_day_s_whichever_way_the_clock_jumps(tmp_path):
    now = [86_400.0 * 20_000]
    ledger = await Ledger.open(tmp_path, clock=lambda: now[0])
    await ledger.set_day_cap(10)
    account = await ledger.open_session("s", Limits(calls=None))
    hold = await ledger.hold(account, Worst(1, 1, 10), OUT)
    now[0] += 86_400  # settled on another day than it was held
    await ledger.settle(hold, Charge("ok", Usage(1, 1), 7))
    tomorrow = await ledger.hold(account, Worst(1, 1, 10), OUT)
    now[0] -= 86_400
    with pytest.raises(HoldRefused) as caught:
        await ledger.hold(account, Worst(1, 1, 4), OUT)
    assert (caught.value.scope, caught.value.spent) == ("day", 7)
    await ledger.hold(account, Worst(1, 1, 3), OUT)
    await ledger.settle(tomorrow, Charge("reset"))
    assert (await ledger.verify(account))["ok"]
    await ledger.aclose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET calls_held = calls_held + 2 WHERE name = 'session:s'",
        "UPDATE accounts SET tokens_held = tokens_held + 101 WHERE name = 'session:s'",
        "UPDATE accounts SET micro = micro + 1001 WHERE name = 'session:s'",
        "UPDATE accounts SET micro_held = 1001, micro_over = 5000 WHERE name = 'session:s'",
        "UPDATE accounts SET micro = 1.5 WHERE name = 'session:s'",
        "UPDATE accounts SET calls = -1 WHERE name = 'session:s'",
        "UPDATE events SET micro = 0",
        "DELETE FROM events",
        "UPDATE attempts SET state = 'settled'",
        (
            "INSERT INTO attempts SELECT 99, account, day, owner, 'sent', 9999999999999, NULL, 1, 1, 1, 'p', 'd', 'm', 'k', 's', 1, 1,"
            " NULL, 1, 1, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM attempts"
        ),
    ],
)
async def test_the_schema_itself_refuses(tmp_path, ledger, statement):
    account = await ledger.open_session("s", Limits(calls=1, tokens=100, cost_micro=1000, deadline=9_999_999_999.0))
    await ledger.hold(account, Worst(0, 0, 0), OUT)
    db = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    db.close()


async def test_a_job_that_the_schema_refuses_fails_alone(ledger):
    account = await ledger.open_session("s", Limits())

    def wrong(book):
        book.account(account)["calls"] = -5
        book._touched.add(account)

    good, bad, fine = (
        ledger._writer.submit(lambda book: book.count_cached(account, 1)),
        ledger._writer.submit(wrong),
        ledger._writer.submit(lambda book: book.count_cached(account, 1)),
    )
    with pytest.raises(sqlite3.IntegrityError):
        await bad
    await asyncio.gather(good, fine)
    assert (await ledger.account(account))["cached_calls"] == 2


async def test_every_sum_comes_from_the_events_and_a_forged_one_is_found(tmp_path, ledger):
    account = await ledger.open_session("s", Limits(calls=None))
    for number in range(6):
        hold = await ledger.hold(account, Worst(100, 50, 500), OUT)
        if number % 3 == 0:
            await ledger.settle(hold, Charge("ok", Usage(5, 4, 3, 2), 77))
        elif number % 3 == 1:
            await ledger.settle(hold, Charge("reset"))
        else:
            await ledger.release(hold, "rate_limited")
    proof = await ledger.verify(account)
    assert proof["ok"]
    assert (proof["attempts"], proof["sums"]["micro"], proof["sums"]["calls"]) == (6, 2 * 77 + 2 * 500, 4)
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.execute("UPDATE accounts SET micro = micro - 1 WHERE name = 'session:s'")
    db.commit()
    db.close()
    proof = await ledger.verify(account)
    assert not proof["ok"]
    assert proof["mismatches"][0] == {"account": "session:s", "column": "micro", "recorded": 1153, "derived": 1154}


async def test_warnings_come_again_when_the_cap_was_raised_and_is_near_again(ledger):
    account = await ledger.open_session("s", Limits(calls=5))

    async def spend():
        return await ledger.settle(await ledger.hold(account, Worst(1, 1, 1), OUT), Charge("ok", Usage(1, 1), 1))

    told = [await spend() for _ in range(5)]
    assert [len(texts) for texts in told] == [0, 0, 0, 1, 0]
    await ledger.set_limits(account, {"calls_cap": 10})
    told = [await spend() for _ in range(5)]
    assert [len(texts) for texts in told] == [0, 0, 1, 0, 0]


async def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path):
    (await asyncio.to_thread(connect, tmp_path / "ledger.db", busy_s=1)).executescript(
        "CREATE TABLE migrations (name TEXT PRIMARY KEY); INSERT INTO migrations VALUES ('m999_from_the_future');"
    )
    with pytest.raises(LedgerUnavailable, match="newer version"):
        await Ledger.open(tmp_path)


def test_migrations_are_named_in_order_and_run_once(tmp_path):
    db = connect(tmp_path / "x.db", busy_s=1)
    assert migrate(db) == len(MIGRATIONS)
    assert migrate(db) == 0
    names = [step.__name__ for step in MIGRATIONS]
    assert names == sorted(names)
    assert all(name.startswith(f"m{number:03}_") for number, name in enumerate(names, 1))
    with pytest.raises(TypeError):
        verify(db, 1)  # no such account
    db.close()


async def test_the_ledger_is_its_owner_s_alone(tmp_path, ledger):
    await ledger.open_session("s", Limits())
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("ledger.db*")} == {
        "ledger.db": "0o600",
        "ledger.db-wal": "0o600",
        "ledger.db-shm": "0o600",
    }
