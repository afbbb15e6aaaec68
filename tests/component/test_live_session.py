"""A live session against a guest that is played: races of a kernel's life, ends from everywhere, and liars."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_sandbox.errors import EngineError, NoSuchSession, ProtocolError
from rlm_sandbox.session.asks import OUTSTANDING_MAX
from rlm_sandbox.session.host import OVERDUE_S, Host, _over
from rlm_sandbox.wire import messages as m
from tests.support.fake_guest import played

pytestmark = pytest.mark.component

STOPPED = NoSuchSession("it was stopped")


@pytest.fixture
async def session(tmp_path):
    made = await played(tmp_path)
    yield made
    made.container.close_error = None
    await made.live.close(STOPPED)
    assert made.container.closed == 1
    assert made.account.closed == 1
    assert made.journal.closed


async def test_a_cell_from_its_code_to_its_document(session):
    session.boot(1)
    running = session.execute(b"print(1)")
    assert (await session.container.hears(m.Cell)).payload == b"print(1)"
    session.container.say(m.Output(1, b"out\x1b\n"))
    session.container.kernel_says(
        1, m.Final(1, "direct", None, 2, False, b"a"), m.Final(1, "direct", None, 2, True, b"b")
    )
    await session.finish(1, 1)
    done = await running
    assert (done.status, done.stdout, done.final.length) == ("ok", "out\\x1b\n", 2)
    assert session.live.store.read_final() == b"ab"


async def test_a_kernel_that_dies_while_a_cell_is_on_its_way_is_waited_for(session):
    session.boot(1)
    await session.live._ready.wait()
    session.container.say(m.KernelDown(1, 0, "exit", 0, False, 0))
    running = session.execute()
    await asyncio.sleep(0.01)
    session.boot(2)
    assert (await session.container.hears(m.Cell)).cell == 1
    await session.finish(2, 1)
    assert (await running).status == "ok"


async def test_a_kernel_that_dies_just_after_it_was_ready_does_not_get_the_cell(session):
    running = session.execute()
    await asyncio.sleep(0.01)
    session.container.say(m.KernelUp(1), m.KernelOut(1, m.Ready().encode()), m.KernelDown(1, 0, "signal", 9, False, 0))
    await asyncio.sleep(0.01)
    assert not running.done()
    session.boot(2)
    await session.container.hears(m.Cell)
    await session.finish(2, 1)
    assert (await running).status == "ok"


async def test_a_kernel_that_dies_in_a_cell_is_reported_and_the_next_one_serves(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    session.container.say(m.Output(1, b"last words"), m.KernelDown(1, 1, "memory", 9, False, 3))
    done = await running
    assert (done.status, done.stdout) == ("kernel_died", "last words")
    assert "memory" in done.error
    session.boot(2)
    again = session.execute()
    await session.container.hears(m.Cell)
    await session.finish(2, 2)
    assert (await again).cell == 2


async def test_half_a_final_answer_of_a_dead_kernel_is_no_answer(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    session.container.kernel_says(1, m.Final(1, "direct", None, 9, False, b"half"))
    session.container.say(m.KernelDown(1, 1, "exit", 1, False, 0))
    assert (await running).final is None
    with pytest.raises(NoSuchSession):
        session.live.store.read_final()
    assert not list(session.live.store.folder.glob("*.part"))


async def test_closing_tells_the_running_cell_and_the_queued_one(session):
    session.boot(1)
    first, second = session.execute(), session.execute()
    await session.container.hears(m.Cell)
    await asyncio.gather(session.live.close(STOPPED), session.live.close(STOPPED))
    for running in (first, second):
        with pytest.raises(NoSuchSession):
            await running


async def test_a_container_that_ends_ends_the_session_with_a_protocol_error(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    session.container.hang_up()
    with pytest.raises(ProtocolError, match="the container ended"):
        await running
    with pytest.raises(NoSuchSession, match="has ended"):
        await session.execute()


async def test_an_engine_that_fails_to_remove_the_container_costs_nothing_else(session):
    session.container.close_error = EngineError("no answer")
    with pytest.raises(EngineError):
        await session.live.close(STOPPED)
    assert session.account.closed == 1
    assert session.journal.closed
    assert session.live.admitted.fd == -1
    session.container.close_error = None
    session.live._closing = asyncio.create_task(asyncio.sleep(0))  # what the fixture awaits once more


async def test_a_caller_that_gives_up_does_not_take_the_cell_with_it(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    running.cancel()
    await asyncio.wait([running])
    await session.finish(1, 1)
    assert (await session.live.wait(None, None)).status == "ok"
    again = session.execute()
    await session.container.hears(m.Cell)
    await session.finish(1, 2)
    assert (await again).status == "ok"


async def test_a_caller_that_gives_up_before_its_turn_leaves_the_turn_free(session):
    waiting = session.execute()
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    session.boot(1)
    running = session.execute()
    assert (await session.container.hears(m.Cell)).cell == 1
    await session.finish(1, 1)
    assert (await running).status == "ok"


async def test_a_cell_whose_guest_stays_silent_is_given_up(session, monkeypatch):
    session.boot(1)
    running = session.execute(timeout_s=1.0)
    await session.container.hears(m.Cell)
    assert _over(session.live) is None
    session.live.running.started -= OVERDUE_S + 2
    assert "did not answer" in _over(session.live)
    await session.live.close(ProtocolError("x"))
    with pytest.raises(ProtocolError):
        await running


async def test_calls_are_answered_while_the_cell_waits_and_dropped_when_it_is_gone(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    ask = {"group": 1, "size": 1, "width": 0, "ordinal": 0, "system": None, "prefix": None, "schema": None, "model": None,
           "max_tokens": None, "thinking_budget": None, "cache": True, "sample": 0}  # fmt: skip
    session.container.kernel_says(1, m.Ask(id=1, payload=b"hi", **ask))
    answer = await session.container.hears(m.Answer)
    assert (answer.id, answer.payload) == (1, b"HI")
    session.account.gate.clear()
    session.container.kernel_says(1, m.Ask(id=2, payload=b"late", **ask))
    await asyncio.sleep(0.01)
    assert session.account.asked == ["hi", "late"]
    session.container.say(m.KernelDown(1, 1, "exit", 1, False, 0))
    assert (await running).status == "kernel_died"
    session.account.gate.set()
    await asyncio.sleep(0.01)
    assert not [each for each in session.container.heard if isinstance(each, m.Answer)]


async def test_a_guest_that_asks_without_end_is_cut_off(session):
    session.boot(1)
    running = session.execute()
    await session.container.hears(m.Cell)
    session.account.gate.clear()
    ask = {"group": 1, "size": 1, "width": 0, "ordinal": 0, "system": None, "prefix": None, "schema": None, "model": None,
           "max_tokens": None, "thinking_budget": None, "cache": True, "sample": 0}  # fmt: skip
    for number in range(1, OUTSTANDING_MAX + 2):
        session.container.kernel_says(1, m.Ask(id=number, payload=b"x", **ask))
    with pytest.raises(ProtocolError, match="too many"):
        await running


_AGENT = st.one_of(
    st.builds(m.KernelUp, gen=st.integers(1, 4)),
    st.builds(m.Output, cell=st.integers(0, 3), payload=st.binary(max_size=20)),
    st.builds(m.Expired, cell=st.integers(1, 3)),
    st.builds(m.CellClosed, cell=st.integers(1, 3), dropped=st.integers(0, 5), strays=st.just(0)),
    st.builds(
        m.KernelDown,
        gen=st.integers(1, 3),
        cell=st.integers(0, 3),
        cause=st.sampled_from(["exit", "signal", "memory", "unresponsive"]),
        code=st.integers(0, 255),
        expired=st.booleans(),
        dropped=st.integers(0, 5),
    ),
    st.just(m.Ready()),
    st.just(m.Bye()),
)
_KERNEL = st.one_of(
    st.just(m.Ready()),
    st.builds(m.Share, id=st.integers(1, 6), payload=st.binary(max_size=9)),
    st.builds(m.Unshare, id=st.integers(1, 6)),
    st.builds(m.Cancel, id=st.integers(1, 6)),
    st.builds(m.AskBudget, id=st.integers(1, 6)),
    st.builds(
        m.Ask,
        id=st.integers(1, 9),
        group=st.just(1),
        size=st.just(1),
        width=st.just(0),
        ordinal=st.integers(0, 3),
        system=st.none() | st.integers(1, 6),
        prefix=st.none(),
        schema=st.none(),
        model=st.none(),
        max_tokens=st.none(),
        thinking_budget=st.none(),
        cache=st.booleans(),
        sample=st.just(0),
        payload=st.binary(max_size=9),
    ),
    st.builds(
        m.Final,
        cell=st.integers(1, 2),
        kind=st.sampled_from(["direct", "var"]),
        name=st.none() | st.text(max_size=5),
        length=st.integers(0, 9),
        last=st.booleans(),
        payload=st.binary(max_size=9),
    ),
    st.builds(
        m.Result,
        cell=st.integers(1, 2),
        status=st.sampled_from(["ok", "error", "interrupted"]),
        variables=st.just([]),
        variables_total=st.integers(0, 9),
        warnings=st.lists(st.text(max_size=9), max_size=2),
        payload=st.binary(max_size=9),
    ),
)
_SAID = st.one_of(
    _AGENT.map(lambda message: message.encode()),
    st.tuples(st.integers(1, 2), _KERNEL).map(lambda pair: m.KernelOut(pair[0], pair[1].encode()).encode()),
    st.tuples(st.integers(1, 2), st.binary(max_size=30)).map(lambda pair: m.KernelOut(pair[0], pair[1]).encode()),
    st.binary(max_size=30),
)


async def _lied_to(said):
    with tempfile.TemporaryDirectory() as folder:
        session = await played(Path(folder))
        session.boot(1)
        running = session.execute(wait_s=5)
        await session.container.hears(m.Cell)
        for piece in said:
            session.container.say(piece)
            await asyncio.sleep(0)
        session.container.hang_up()
        outcome = (await asyncio.gather(running, return_exceptions=True))[0]
        async with asyncio.timeout(5):
            await session.live.over.wait()
            await session.live.close(STOPPED)
        assert session.live.ended.kind == "protocol", session.live.ended
        assert not isinstance(outcome, BaseException) or isinstance(outcome, ProtocolError), outcome
        assert session.journal.closed
        assert (session.container.closed, session.account.closed) == (1, 1)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_SAID, max_size=12))
def test_a_liar_ends_its_own_session_with_a_protocol_error_and_nothing_else(said):
    asyncio.run(_lied_to(said))


async def test_a_session_that_is_being_started_is_waited_for_and_not_called_live():
    host = Host.__new__(Host)
    host.sessions, host._crashed, host._starting = {}, {}, {"s"}
    found = asyncio.create_task(host.attend("s"))
    await asyncio.sleep(0.12)
    assert not found.done()
    host._starting.clear()
    with pytest.raises(NoSuchSession):
        await found


async def test_a_container_that_ends_under_a_repeated_cell_ends_the_session_all_the_same(session):
    session.boot(1)
    await session.live.until_ready()
    again = asyncio.create_task(session.live.chronicle.run_again(b"x = 1", 1, 60.0))
    await session.container.hears(m.Cell)
    session.container.hang_up()
    with pytest.raises(ProtocolError):
        await again
    await session.live.close(STOPPED)
    assert session.live.over.is_set()
