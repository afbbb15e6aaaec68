"""The data path against engines that misbehave: a small server on a Unix socket plays them."""

import asyncio
import contextlib
import json
import struct

import pytest

from rlm_sandbox.container import transport
from rlm_sandbox.container.attach import Container
from rlm_sandbox.errors import DeadlineError, EngineError, ImageError, ProtocolError

pytestmark = pytest.mark.component

UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


class FakeEngine:
    """As much of an engine as the transport asks for."""

    api_version = "1.41"
    tls = None

    def __init__(self, path):
        self.host = self.address = f"unix://{path}"


@pytest.fixture
async def serve(tmp_path):
    servers = []

    async def go(handler):
        async def wrapped(reader, writer):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()

        path = tmp_path / f"engine{len(servers)}.sock"
        servers.append(await asyncio.start_unix_server(wrapped, path))
        return FakeEngine(path)

    yield go
    for server in servers:
        server.close()


def attach(engine):
    return transport.request(engine, "POST", "/containers/x/attach?stream=1", {"Upgrade": "tcp"}, doing="attach")


def record(data, stream=1):
    return struct.pack(">BxxxL", stream, len(data)) + data


async def container(engine):
    stream = await attach(engine)
    events = transport.Stream(asyncio.StreamReader(), stream.writer)
    return Container(engine, "id", "name", stream, events)


async def drop(made):
    made._stream.abort()
    made._watcher.cancel()


async def test_bytes_that_come_with_the_head_are_not_lost(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED + record(b"first") + record(b"err", 2) + record(b"second"))
        await writer.drain()

    made = await container(await serve(handler))
    data = b""
    while piece := await made.read():
        data += piece
    assert data == b"firstsecond"
    assert made.stderr_tail == "err"
    await drop(made)


async def test_a_stream_cut_in_the_middle_ends_and_does_not_hang(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED + record(b"x" * 100)[:50])

    made = await container(await serve(handler))
    assert await made.read() == b"x" * 42
    assert await made.read() == b""
    assert await made.read() == b""
    await drop(made)


async def test_a_stream_without_frames_is_a_protocol_error(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED + b"plain text, as from a terminal")

    made = await container(await serve(handler))
    with pytest.raises(ProtocolError):
        await made.read()
    await drop(made)


async def test_a_reader_that_stalls_meets_the_deadline_and_the_limit(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED)
        await asyncio.sleep(3600)

    made = await container(await serve(handler))
    made.write(b"x" * (4 << 20))
    with pytest.raises(DeadlineError):
        await made.drain(0.05)
    with pytest.raises(ProtocolError):
        made.write(b"x" * (64 << 20))
    await drop(made)


async def test_a_wait_ends_when_the_container_does(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED)
        await asyncio.sleep(3600)

    made = await container(await serve(handler))
    made.write(b"x" * (4 << 20))
    waiting = asyncio.create_task(made.drain(60))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    die = {"Action": "die", "Actor": {"Attributes": {"exitCode": "137"}}}
    made._events.reader.feed_data(b"4f\r\n" + json.dumps(die).encode() + b"\n\r\n")
    await asyncio.wait_for(waiting, 5)
    assert (await made.exit_facts()).code == 137
    made.write(b"ignored")
    await drop(made)


@pytest.mark.parametrize(
    "line", [b"{broken", b"[]", b"17", b'{"Action": "die"}', b'{"Action": "die", "Actor": null}', b"\xff", b""]
)
async def test_events_that_make_no_sense_are_ignored(serve, line):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED)
        await asyncio.sleep(3600)

    made = await container(await serve(handler))
    made._note_event(line)
    assert (await made.exit_facts(0.01)).code is None
    await drop(made)


async def test_a_refusal_is_translated_from_the_engines_words(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"message":"No such image: x:1"}'
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    engine = await serve(handler)
    with pytest.raises(ImageError, match="x:1"):
        await attach(engine)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 600_000,
        b"",
        b"HTTP/1.1 500 Oops\r\n\r\n",
    ],
)
async def test_what_is_not_an_engine_is_an_engine_error(serve, answer):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    engine = await serve(handler)
    with pytest.raises(EngineError):
        await attach(engine)


async def test_an_engine_that_never_answers_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(transport, "HEAD_TIMEOUT", 0.05)

    async def handler(reader, writer):
        await asyncio.sleep(3600)

    engine = await serve(handler)
    with pytest.raises(EngineError, match="in time"):
        await attach(engine)


async def test_a_socket_that_is_not_there_names_the_fix(tmp_path):
    with pytest.raises(EngineError) as caught:
        await attach(FakeEngine(tmp_path / "nothing.sock"))
    assert "make setup" in caught.value.hint


async def test_an_unknown_scheme_is_refused():
    engine = FakeEngine("/x")
    engine.address = "fd://x"
    with pytest.raises(EngineError, match="no way"):
        await attach(engine)


async def test_a_tcp_engine_is_reached_the_same_way(serve):
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UPGRADED + record(b"over tcp"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    engine = FakeEngine("/x")
    engine.address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    made = await container(engine)
    assert await made.read() == b"over tcp"
    await drop(made)
    server.close()
