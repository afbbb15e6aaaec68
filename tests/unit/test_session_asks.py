"""What a hostile kernel may make the host hold and do: everything is counted, and over a cap the session ends."""

import asyncio

import pytest

from rlm_sandbox.broker.types import Answer, Usage
from rlm_sandbox.session import asks as module
from rlm_sandbox.session.asks import Asks
from rlm_sandbox.session.channel import BURST, RATE, TURN, Pace
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameError

pytestmark = pytest.mark.unit


class Account:
    """Answers when it is told to."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.asked = []

    async def ask(self, request, position, observer):
        self.asked.append(request)
        await self.gate.wait()
        return Answer(text="pong", model="m", usage=Usage(), cached=False)

    async def budget(self):
        await self.gate.wait()
        raise AssertionError("nobody waits that long")


@pytest.fixture
def account():
    return Account()


@pytest.fixture
def sent():
    return []


@pytest.fixture
def asks(account, sent):
    async def reply(message):
        sent.append(message)

    made = Asks(account, reply, observer=lambda _: None, cell=lambda: 1, group_base=0)
    yield made
    made.close()


def ask(number, payload=b"?", **fields):
    given = {"system": None, "prefix": None, "schema": None, "model": None, "max_tokens": None, "thinking_budget": None}
    return m.Ask(
        id=number, group=1, size=1, width=0, ordinal=0, cache=True, sample=0, payload=payload, **{**given, **fields}
    )


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_more_asks_than_are_allowed_outstanding_end_the_session(asks):
    for number in range(module.OUTSTANDING_MAX):
        asks.handle(ask(number + 1))
    with pytest.raises(FrameError, match="outstanding"):
        asks.handle(ask(module.OUTSTANDING_MAX + 1))


async def test_questions_about_the_budget_count_as_outstanding_too(asks):
    for number in range(module.OUTSTANDING_MAX):
        asks.handle(m.AskBudget(id=number + 1))
    with pytest.raises(FrameError, match="outstanding"):
        asks.handle(m.AskBudget(id=module.OUTSTANDING_MAX + 1))


async def test_a_text_given_back_still_counts_while_an_ask_in_flight_uses_it(asks, account, monkeypatch):
    monkeypatch.setattr(module, "HELD_MAX", 1000)
    asks.handle(m.Share(id=1, payload=b"s" * 600))
    asks.handle(ask(2, system=1))
    asks.handle(m.Unshare(id=1))
    with pytest.raises(FrameError, match="hold too much"):
        asks.handle(m.Share(id=3, payload=b"s" * 600))
    account.gate.set()
    await settled()
    asks.handle(m.Share(id=4, payload=b"s" * 600))


async def test_what_was_held_for_a_call_is_let_go_even_when_it_was_cancelled_before_it_began(asks, monkeypatch):
    monkeypatch.setattr(module, "HELD_MAX", 1000)
    for number in range(1, 20):
        asks.handle(ask(number, b"p" * 900))
        asks.handle(m.Cancel(id=number))
        await settled()
    assert asks.outstanding == 0


async def test_answers_come_back_and_free_what_they_held(asks, account, sent, monkeypatch):
    monkeypatch.setattr(module, "HELD_MAX", 1000)
    account.gate.set()
    for number in range(1, 20):
        asks.handle(ask(number, b"p" * 900))
        await settled()
    assert [message.id for message in sent] == list(range(1, 20))


async def test_shared_texts_have_an_end_in_number(asks):
    for number in range(module.SHARES_MAX):
        asks.handle(m.Share(id=number + 1, payload=b""))
    with pytest.raises(FrameError, match="too many shared"):
        asks.handle(m.Share(id=module.SHARES_MAX + 1, payload=b""))


@pytest.mark.parametrize("message", [m.Share(id=1, payload=b"\xff"), ask(1, b"\xff"), ask(1, system=9)])
async def test_texts_that_are_no_utf8_and_names_of_nothing_end_the_session(asks, message):
    with pytest.raises(FrameError):
        asks.handle(message)
    assert asks.outstanding == 0


def test_a_guest_within_its_rate_only_lets_others_run_now_and_then():
    now = 0.0
    pace = Pace(lambda: now)
    pauses = []
    for _ in range(100):
        now += TURN / RATE
        pauses += [pace.take() for _ in range(TURN)]
    assert {pause for pause in pauses if pause is not None} == {0.0}
    assert pauses.count(None) == 100 * (TURN - 1)


def test_a_flood_is_slowed_down_to_the_rate():
    now = 0.0
    pace = Pace(lambda: now)
    for _ in range(BURST * 3):
        now += pace.take() or 0.0
    assert now == pytest.approx(2 * BURST / RATE, rel=0.01)
