"""Answers from the record: found by what was asked, in the order in which they came, and bought only where the record ends."""

import asyncio
import os

import pytest

from rlm_sandbox.broker.types import Answer, Position, Request, Usage
from rlm_sandbox.errors import DivergenceError, PolicyError, ProviderError
from rlm_sandbox.session import journal as journals
from rlm_sandbox.session import recorder as recording
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.past import Past
from rlm_sandbox.session.recorder import Recorder
from tests.support.recorded import Payer, record_run

pytestmark = pytest.mark.unit


@pytest.fixture
def past(tmp_path):
    record_run(tmp_path)
    return Past.of(journals.read(journals.lines(tmp_path / "journal.jsonl")))


@pytest.fixture
def journal(tmp_path, past):
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def recorder(journal, payer=None):
    return Recorder(payer, journal, cell=lambda: 1)


async def test_recorded_answers_are_given_again_and_nothing_is_bought_or_written(past, journal):
    payer = Payer()
    again = recorder(journal, payer)
    again.rerun(past.cells[1], journal.read, strict=True)
    before = journal._seq
    answers = await asyncio.gather(
        *(again.ask(Request(prompt), Position(1, at)) for at, prompt in enumerate(["a", "b"]))
    )
    assert [answer.text for answer in answers] == ["answer to a", "answer to b"]
    assert payer.asked == []
    assert journal._seq == before


async def test_a_recorded_error_is_raised_as_it_was(past, journal):
    again = recorder(journal)
    again.rerun(past.cells[1], journal.read, strict=True)
    with pytest.raises(ProviderError) as caught:
        await again.ask(Request("fail c"), Position(1, 2))
    assert (caught.value.message, caught.value.hint, caught.value.code) == ("no answer came", "try again", "overloaded")


class Refusing:
    """A payer that refuses what begins with ``no`` and has the rest in its cache or sells it."""

    async def ask(self, request, position, observer=None):
        if request.prompt.startswith("no"):
            raise PolicyError("not allowed", hint="ask for something else")
        cached = request.prompt == "again"
        return Answer(text="yes", model="m", usage=Usage(1, 1), cached=cached)

    async def budget(self):
        raise NotImplementedError


async def test_what_costs_nothing_fills_no_disk_and_what_is_paid_for_is_kept(past, journal, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FREE_MAX", 100_000)
    asking = recorder(journal, Refusing())
    for at in range(50):
        with pytest.raises(PolicyError):
            await asking.ask(Request("no" + os.urandom(10_000).hex()), Position(9, at))
    assert (tmp_path / "blobs.pack").stat().st_size < 200_000
    before = journal._seq
    for at in range(50):
        assert (await asking.ask(Request("again"), Position(9, 100 + at))).text == "yes"
    assert journal._seq == before
    assert (await asking.ask(Request("buy" + "x" * 200_000), Position(9, 200))).text == "yes"
    assert journal._seq == before + 1


async def test_threads_may_come_in_another_order(past, journal):
    again = recorder(journal)
    again.rerun(past.cells[1], journal.read, strict=True)
    second = asyncio.create_task(again.ask(Request("b"), Position(1, 0)))
    first = await again.ask(Request("a"), Position(1, 1))
    assert (first.text, (await second).text) == ("answer to a", "answer to b")
    assert again.divergence is None


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Request("c"), "differs from recorded call 0 in: prompt"),
        (Request("a", max_tokens=5), "max_tokens"),
        (Request("a", system="s"), "system"),
        (Request("a", sample=1), "sample"),
    ],
)
async def test_what_was_not_asked_then_is_a_divergence_that_says_what_differs(past, journal, request_, what):
    again = recorder(journal, Payer())
    again.rerun(past.cells[1], journal.read, strict=True)
    with pytest.raises(DivergenceError):
        await again.ask(request_, Position(1, 0))
    assert (again.divergence.cell, again.divergence.call) == (1, 0)
    assert what in again.divergence.what


async def test_asking_twice_what_was_asked_once_is_a_divergence(past, journal):
    again = recorder(journal)
    again.rerun(past.cells[1], journal.read, strict=True)
    await again.ask(Request("a"), Position(1, 0))
    with pytest.raises(DivergenceError):
        await again.ask(Request("a"), Position(1, 1))


async def test_a_cell_that_goes_on_is_answered_first_and_then_buys(past, journal, tmp_path):
    payer = Payer()
    again = recorder(journal, payer)
    again.rerun(past.cells[1], journal.read, strict=False)
    assert (await again.ask(Request("a"), Position(1, 0))).text == "answer to a"
    assert (await again.ask(Request("new"), Position(1, 3))).text == "answer to new"
    assert payer.asked == ["new"]
    found = Past.of(journals.read(journals.lines(tmp_path / "journal.jsonl"), torn=True))
    assert [call.ordinal for call in found.cells[1].calls] == [0, 1, 2, 3]


async def test_the_budget_is_what_it_was_and_not_what_it_is(past, journal):
    again = recorder(journal, Payer())
    again.rerun(past.cells[1], journal.read, strict=True)
    assert (await again.budget()).calls == 3
    with pytest.raises(DivergenceError):
        await again.budget()


async def test_an_answer_that_nobody_waits_for_any_more_is_kept(tmp_path):
    started = asyncio.Event()

    class Slow(Payer):
        async def ask(self, request, position, observer=None):
            answer = await super().ask(request, position, observer)
            started.set()
            await asyncio.sleep(0.05)
            return answer

    journal = Journal(tmp_path)
    journal.append("cell", cell=1, code=journal.text("x"), timeout_s=1.0)
    live = recorder(journal, Slow())
    live.began(1)
    task = asyncio.create_task(live.ask(Request("paid"), Position(1, 0)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*live._tasks)
    calls = Past.of(journals.read(journals.lines(tmp_path / "journal.jsonl"), torn=True)).cells[1].calls
    assert calls[0].late is True
    assert journal.read(calls[0].answer) == b"answer to paid"
    journal.close()


async def test_a_late_answer_that_a_cell_was_given_when_it_went_on_is_given_to_its_repetition(past, journal, tmp_path):
    cell = past.cells[1]
    cell.calls = [call.model_copy(update={"late": True}) for call in cell.calls]
    once = recorder(journal)
    once.rerun(cell, journal.read, strict=True)
    with pytest.raises(DivergenceError):
        await once.ask(Request("a"), Position(1, 0))

    lines = journals.lines(tmp_path / "journal.jsonl")
    began = next(record for record, _ in journals.read(lines, torn=True) if record.kind == "cell")
    past.add(began)  # the cell was cut off and goes on
    again = recorder(journal)
    again.rerun(cell, journal.read, strict=True)
    assert (await again.ask(Request("a"), Position(1, 0))).text == "answer to a"


async def test_a_cell_that_a_clock_cut_ends_where_it_asks_beyond_its_record(past, journal):
    cut = past.cells[1]
    cut.result = cut.result.model_copy(update={"status": "timeout"})
    again = recorder(journal)
    ended = asyncio.Queue()
    again.on_cut = ended.put_nowait
    again.rerun(cut, journal.read, strict=True)
    task = asyncio.create_task(again.ask(Request("never answered"), Position(1, 3)))
    assert await ended.get() == 1
    assert again.divergence is None
    task.cancel()
