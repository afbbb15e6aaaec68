"""Coverage-guided bytes against everything on the host that reads a guest: frames, headers, messages, both state tables.

    python tests/fuzz/fuzz_channel.py -max_total_time=600 corpus/

Each input is cut in two places, so that every parser also meets its bytes in pieces. The only exception that may come out is ``FrameError``; memory
and the buffers that wait for more bytes stay bounded; and what was refused once stays refused. ``tests/security/test_channel_fuzz.py`` runs it for
a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["rlm_sandbox.wire"]):
    from rlm_sandbox.wire import messages as m
    from rlm_sandbox.wire import state
    from rlm_sandbox.wire.connection import HostConnection
    from rlm_sandbox.wire.frames import FrameDecoder, FrameError


def running() -> HostConnection:
    """A connection in the middle of a cell, which is where a guest has the most to say."""
    connection = HostConnection()
    connection.agent = state.Agent.LIVE
    list(connection.receive(m.KernelUp(gen=1).encode()))
    list(connection.receive(m.KernelOut(1, m.Ready().encode()).encode()))
    connection.send(m.CellBegin(1, 1000))
    connection.send(m.Cell(1, b"1"))
    return connection


def hear(connection: HostConnection, pieces: list[bytes]) -> None:
    """Feed a connection; after a violation it must be closed for good."""
    try:
        for piece in pieces:
            for message in connection.receive(piece):
                assert isinstance(message, (*m.AGENT_TO_HOST, *m.KERNEL_TO_HOST))
                assert not isinstance(message, m.KernelOut)
    except FrameError:
        assert connection.agent is state.Agent.CLOSED
        assert list(connection.receive(m.Output(0, b"x").encode())) == []


def decode(pieces: list[bytes]) -> None:
    """Feed the agent's own parser, which reads the host: it must be as strict."""
    decoder, parse = FrameDecoder(payload_max=m.WRAPPED_CHUNK), m.parser(m.HOST_TO_AGENT)
    try:
        for piece in pieces:
            decoder.feed(piece)
            for header, payload in decoder:
                assert isinstance(parse(header, payload), m.HOST_TO_AGENT)
    except FrameError:
        pass


def one_input(data: bytes) -> None:
    """Try one input in every role. The first byte cuts it."""
    if len(data) < 2:
        return
    cut, rest = data[0] % len(data), data[1:]
    pieces = [rest[:cut], rest[cut:]]
    hear(running(), pieces)
    hear(running(), [m.KernelOut(1, piece).encode() for piece in pieces])
    framed = len(rest).to_bytes(4, "big") + bytes(4) + rest
    hear(running(), [m.KernelOut(1, framed).encode()])
    hear(running(), [framed])
    decode(pieces)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
