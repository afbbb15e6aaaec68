"""The host's end of the channel against a peer that lies: every violation ends the connection, and only violations do."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.wire import PROTOCOL_VERSION, state
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.connection import HostConnection
from rlm_sandbox.wire.frames import FrameError, encode

pytestmark = pytest.mark.unit

HELLO = m.Hello(protocol=PROTOCOL_VERSION, session="s", grace_ms=1, lifetime_ms=1, output_max=1, sample=[])
REPORT = m.Report(
    protocol=1, guest_version="", python="", uid=0, gid=0, groups=[], cap_eff="", cap_prm="", cap_bnd="", cap_inh="",
    cap_amb="", no_new_privs=1, seccomp=2, socket_denied=True, dumpable=0, memory_max=1, swap_max=0, pids_max=1,
    cpu_milli=1, nofile=1, core=0, root_readonly=True, interfaces=[], mounts=[], env=[], kernel_release="", input_dev=0,
    input_ino=0, input_size=0, input_sample="",
)  # fmt: skip
RESULT = m.Result(cell=1, status="ok", variables=[], variables_total=0, warnings=[])


def ask(number: int, **changes) -> m.Ask:
    given = {
        "id": number, "group": 1, "size": 1, "width": 0, "ordinal": 0, "system": None, "prefix": None, "schema": None,
        "model": None, "max_tokens": None, "thinking_budget": None, "cache": True, "sample": 0,
    }  # fmt: skip
    return m.Ask(**{**given, **changes}, payload=b"p")


def wrapped(*inner: m.Message, gen: int = 1) -> bytes:
    return m.KernelOut(gen=gen, payload=b"".join(message.encode() for message in inner)).encode()


def live() -> HostConnection:
    connection = HostConnection()
    connection.send(HELLO)
    list(connection.receive(REPORT.encode()))
    connection.send(m.Go(payload=b"{}"))
    return connection


def idle() -> HostConnection:
    connection = live()
    list(connection.receive(m.KernelUp(gen=1).encode() + wrapped(m.Ready())))
    return connection


def running() -> HostConnection:
    connection = idle()
    connection.send(m.CellBegin(cell=1, timeout_ms=1))
    connection.send(m.Cell(cell=1, payload=b"pass"))
    return connection


def down(gen=1, cell=0):
    return m.KernelDown(gen=gen, cell=cell, cause="exit", code=0, expired=False, dropped=0)


def test_a_whole_session_in_every_cut_gives_the_same_events():
    stream = (
        m.Output(cell=1, payload=b"hi").encode()
        + wrapped(m.Share(id=1, payload=b"s"), ask(2), m.AskBudget(id=3), m.Cancel(id=2), m.Unshare(id=1))
        + wrapped(m.Final(cell=1, kind="direct", name=None, length=1, last=True, payload=b"x"), RESULT)
        + m.Expired(cell=1).encode()
        + down(cell=1).encode()
        + m.KernelUp(gen=2).encode()
        + wrapped(m.Ready(), gen=2)
    )
    whole = list(running().receive(stream))
    assert [type(message) for message in whole] == [
        m.Output, m.Share, m.Ask, m.AskBudget, m.Cancel, m.Unshare, m.Final, m.Result, m.Expired, m.KernelDown,
        m.KernelUp, m.Ready,
    ]  # fmt: skip
    connection = running()
    bytewise = list(itertools.chain.from_iterable(connection.receive(bytes([byte])) for byte in stream))
    assert bytewise == whole


def test_inner_frames_may_straddle_outer_ones():
    raw = ask(1).encode()
    connection = running()
    pieces = b"".join(m.KernelOut(gen=1, payload=raw[at : at + 3]).encode() for at in range(0, len(raw), 3))
    assert list(connection.receive(pieces)) == [ask(1)]


def test_a_large_cell_is_cut_into_outer_frames_that_the_agent_takes():
    connection = idle()
    source = b"#" * (3 * m.WRAPPED_CHUNK)
    raw = connection.send(m.Cell(cell=1, payload=source))
    from rlm_sandbox.wire.frames import FrameDecoder  # noqa: PLC0415

    decoder = FrameDecoder(payload_max=m.WRAPPED_CHUNK)
    decoder.feed(raw)
    inner = b"".join(m.parser(m.HOST_TO_AGENT)(header, payload).payload for header, payload in decoder)
    assert inner == m.Cell(cell=1, payload=source).encode()


VIOLATIONS = {
    "a report before hello": (HostConnection, REPORT.encode()),
    "a kernel before go": (HostConnection, m.KernelUp(gen=1).encode()),
    "a second report": (live, REPORT.encode()),
    "a kernel that skips a generation": (live, m.KernelUp(gen=2).encode()),
    "a second kernel beside a live one": (idle, m.KernelUp(gen=2).encode()),
    "bytes of a kernel that was not announced": (idle, wrapped(m.Ready(), gen=2)),
    "the end of another kernel": (idle, down(gen=2).encode()),
    "the end of no kernel": (live, down(gen=1).encode()),
    "a second ready": (idle, wrapped(m.Ready())),
    "a result when no cell runs": (idle, wrapped(RESULT)),
    "a result of another cell": (
        running,
        wrapped(m.Result(cell=2, status="ok", variables=[], variables_total=0, warnings=[])),
    ),
    "two results": (running, wrapped(RESULT, RESULT)),
    "a final of another cell": (running, wrapped(m.Final(cell=7, kind="direct", name=None, length=0, last=True))),
    "a final when no cell runs": (idle, wrapped(m.Final(cell=1, kind="direct", name=None, length=0, last=True))),
    "an id used twice": (running, wrapped(ask(1), ask(1))),
    "an id that goes back": (running, wrapped(ask(5), m.Share(id=4))),
    "an id shared by a budget and an ask": (running, wrapped(m.AskBudget(id=1), ask(1))),
    "an ask before ready": (live, m.KernelUp(gen=1).encode() + wrapped(ask(1))),
    "a message of the host's from the kernel": (running, wrapped(m.Cell(cell=2))),
    "a message of the agent's from the kernel": (running, wrapped(m.CellClosed(cell=1, dropped=0, strays=0))),
    "a message of the kernel's from the agent": (running, RESULT.encode()),
    "a cell closed that is not closing": (running, m.CellClosed(cell=1, dropped=0, strays=0).encode()),
    "an expiry of a cell never sent": (running, m.Expired(cell=2).encode()),
    "a giant outer length": (running, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "a giant inner length": (running, m.KernelOut(gen=1, payload=b"\xff\xff\xff\xff\x00\x00\x00\x00").encode()),
    "an outer frame with bulk": (running, encode({"t": "kernel_out", "gen": 1}, bytes(m.WRAPPED_CHUNK + 1))),
    "a pickle": (running, m.KernelOut(gen=1, payload=b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00").encode()),
    "text": (running, b"Traceback (most recent call last):\n"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_ends_the_connection_for_good(case):
    start, raw = VIOLATIONS[case]
    connection = start()
    with pytest.raises(FrameError):
        list(connection.receive(raw))
    assert connection.agent is state.Agent.CLOSED
    assert connection.kernel is state.Kernel.DOWN
    assert list(connection.receive(wrapped(ask(9)))) == []


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_is_found_byte_by_byte_too(case):
    start, raw = VIOLATIONS[case]
    connection = start()
    with pytest.raises(FrameError):
        list(itertools.chain.from_iterable(connection.receive(bytes([byte])) for byte in raw))


def test_bytes_of_a_dead_kernel_are_dropped_and_its_half_frame_with_them():
    connection = running()
    half = ask(1).encode()[:-3]
    list(connection.receive(m.KernelOut(gen=1, payload=half).encode() + down(cell=1).encode()))
    assert list(connection.receive(wrapped(ask(2)))) == []
    list(connection.receive(m.KernelUp(gen=2).encode() + wrapped(m.Ready(), gen=2)))
    assert list(connection.receive(wrapped(ask(9), gen=1))) == []
    assert list(connection.receive(wrapped(ask(1), gen=2))) == [ask(1)]


def test_a_thread_of_a_finished_cell_may_still_ask():
    connection = running()
    list(connection.receive(wrapped(RESULT)))
    assert list(connection.receive(wrapped(ask(1)))) == [ask(1)]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (HostConnection, m.Go(payload=b"{}")),
        (HostConnection, m.Bye()),
        (live, HELLO),
        (live, m.Cell(cell=1)),
        (running, m.Cell(cell=2)),
        (live, m.Answer(id=1, kind="ok", code="", cached=False)),
    ],
)
def test_the_host_may_not_speak_out_of_turn_either(start, message):
    with pytest.raises(FrameError):
        start().send(message)


def test_the_tables_know_every_message_and_no_other():
    assert {kind for _, kind in state.AGENT} == {*m.HOST_TO_AGENT, *m.AGENT_TO_HOST}
    assert {kind for _, kind in state.KERNEL} == {*m.HOST_TO_KERNEL, *m.KERNEL_TO_HOST}
    assert not [pair for pair in state.AGENT if pair[0] is state.Agent.CLOSED]
    assert not [pair for pair in state.KERNEL if pair[0] is state.Kernel.DOWN]


@given(st.lists(st.binary(max_size=60), max_size=8))
@settings(deadline=None)
def test_whatever_a_kernel_writes_is_an_event_or_a_frame_error(chunks):
    connection = running()
    try:
        for chunk in chunks:
            for event in connection.receive(m.KernelOut(gen=1, payload=chunk).encode()):
                assert isinstance(event, m.KERNEL_TO_HOST)
    except FrameError:
        assert connection.agent is state.Agent.CLOSED
