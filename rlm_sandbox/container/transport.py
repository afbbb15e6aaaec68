"""Raw byte streams to the engine, on asyncio: the part of HTTP that docker-py cannot do without threads.

An attach takes the connection over after the answer's headers. Reading those headers from the same buffer that the stream goes
on from means that no byte can fall between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import urllib.parse
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from rlm_sandbox.container.failures import boundary, explain
from rlm_sandbox.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_sandbox.container.engine import Engine

READ_BUFFER = 256 * 1024
"""Bytes held per stream before the engine is made to wait, and through it the guest."""

HEAD_TIMEOUT = 30.0
"""Seconds for the engine to answer a request's head."""

_ERROR_BODY_MAX = 64 * 1024


class Stream(NamedTuple):
    """Both directions of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self) -> None:
        """Close at once, without flushing."""
        self.writer.transport.abort()


async def connect(engine: Engine) -> Stream:
    """Open one connection to the engine. Raises :class:`EngineError`."""
    url = urllib.parse.urlsplit(engine.address)
    with boundary("open a stream"):
        if url.scheme in {"unix", "http+unix"}:
            path = urllib.parse.unquote(url.path) if url.path else url.netloc
            return Stream(*await asyncio.open_unix_connection(path, limit=READ_BUFFER))
        if url.scheme in {"tcp", "http", "https"}:
            context = _tls_context(engine)
            port = url.port or (2376 if context else 2375)
            return Stream(*await asyncio.open_connection(url.hostname, port, ssl=context, limit=READ_BUFFER))
    raise EngineError(f"no way to reach an engine at {url.scheme}://", hint="use unix://, tcp:// or ssh://")


def _tls_context(engine: Engine) -> ssl.SSLContext | None:
    if engine.tls is None:
        return None
    context = ssl.create_default_context(cafile=engine.tls.ca)
    context.load_cert_chain(engine.tls.cert, engine.tls.key)
    return context


async def request(engine: Engine, method: str, path: str, headers: Mapping[str, str], *, doing: str) -> Stream:
    """Send a request without a body and return the stream after the answer's head (status 101 or 200).

    Raises:
        EngineError: the engine cannot be reached or refused; other errors of :mod:`failures` where its words say so.
    """
    stream = await connect(engine)
    lines = [f"{method} /v{engine.api_version}{path} HTTP/1.1", "Host: docker", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        with boundary(doing):
            stream.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            async with asyncio.timeout(HEAD_TIMEOUT):
                await stream.writer.drain()
                status = _status(await stream.reader.readuntil(b"\r\n\r\n"))
            if status not in {101, 200}:
                await _refused(stream, status, doing)
    except (asyncio.LimitOverrunError, ValueError) as exc:
        stream.abort()
        raise EngineError(f"what answers at {engine.host} is not a Docker engine (to {doing})") from exc
    except BaseException:
        stream.abort()
        raise
    return stream


async def _refused(stream: Stream, status: int, doing: str) -> NoReturn:
    """Raise what the engine's error body says."""
    body = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            body = await stream.reader.read(_ERROR_BODY_MAX)
    raise explain(_engine_message(body) or f"HTTP status {status}", doing)


def _status(head: bytes) -> int:
    version, code, *_ = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not version.startswith(b"HTTP/1."):
        msg = "not HTTP"
        raise ValueError(msg)
    return int(code)


def _engine_message(body: bytes) -> str:
    """Return the engine's words from an error's body, whatever its framing."""
    text = body.decode("utf-8", "replace")
    start, end = text.find("{"), text.rfind("}")
    try:
        return str(json.loads(text[start : end + 1])["message"])
    except (ValueError, KeyError, TypeError):
        return text
