"""What the SDK adapters share: a bounded HTTP client, and one reading of everything that can go wrong on a wire.

Three invariants. The bytes that reach a parser are capped *after* decompression, piece by piece, so a small compressed
body cannot become a large one in memory. Nothing of the process's environment (proxies, netrc, certificates, headers) has a say unless
the credentials name it. Redirects are not followed: a key goes to the host it was given for and nowhere else.

This module imports httpx2, which is slow; adapters load it on first use, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx2

from rlm_sandbox.broker.providers.answer import short_id
from rlm_sandbox.broker.providers.endpoint import NO_KEY
from rlm_sandbox.broker.types import ProviderFault

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Credentials

BODY_MAX = 64 * 1024 * 1024
"""Decompressed bytes of one answer. The longest output today is 128k tokens; streamed one token per event, an event takes
about 200 bytes, so 26 MB. Twice that and some."""

ERROR_BODY_MAX = 1024 * 1024
"""Decompressed bytes of an error's body: its message is all that is wanted."""

INFLATE_STEP = 64 * 1024
"""Bytes produced by one call of the decompressor, hence how far the cap can be overrun inside it."""

RETRY_AFTER_MAX = 7 * 86_400.0
"""Seconds. Waiting is bounded by the call's deadline anyway; this only keeps absurd numbers out of arithmetic."""

TAIL_S = 0.5
"""How long to wait for a stream to end after its message has: then the connection can be used again."""

CONNECT_S = 20.0
"""Seconds for TCP and TLS together; a provider that is up answers in well under one."""


class BodyTooLarge(Exception):  # noqa: N818 - internal, translated to a fault
    """A response grew beyond its cap."""


class Refused(Exception):  # noqa: N818 - internal, translated to a fault
    """The provider answered with an error status."""

    def __init__(self, status: int, headers: Mapping[str, str], body: object) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body


class _Bounded(httpx2.AsyncByteStream):
    """A response stream: decompressed here, and cut off at ``limit`` bytes. ``closed`` is called once, when it is done with."""

    def __init__(self, inner: httpx2.AsyncByteStream, encoding: str, limit: int, closed: Callable[[], None]) -> None:
        self._inner = inner
        self._encoding = encoding
        self._limit = limit
        self._closed: Callable[[], None] | None = closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        inflate = zlib.decompressobj(wbits=47) if self._encoding else None
        async for chunk in self._inner:
            data = chunk
            while data:
                piece = inflate.decompress(data, INFLATE_STEP) if inflate else data
                data = inflate.unconsumed_tail if inflate else b""
                seen += len(piece)
                if seen > self._limit:
                    raise BodyTooLarge(f"the response is larger than {self._limit} bytes")
                if piece:
                    yield piece

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            if self._closed is not None:
                closed, self._closed = self._closed, None
                closed()


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """A connection for each request in flight, used again; every response is a :class:`_Bounded` one without a content encoding.

    Each connection has a pool of its own: one pool of many looks at all that are idle, with two system calls for each,
    at the begin and at the end of every request, which at twenty in flight was a sixth of a call's time. Pool
    limits are not needed: the limiter is what bounds requests in flight.
    """

    def __init__(self, make: Callable[[], httpx2.AsyncBaseTransport]) -> None:
        self._make = make
        self._all: list[httpx2.AsyncBaseTransport] = []
        self._idle: list[httpx2.AsyncBaseTransport] = []

    def make_ready(self) -> None:
        """Make the first connection's transport now, so that what cannot be used is found before anything is paid for."""
        self._idle.append(self._take())

    def _take(self) -> httpx2.AsyncBaseTransport:
        if self._idle:
            return self._idle.pop()
        self._all.append(self._make())
        return self._all[-1]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        inner = self._take()
        if _has_unread(inner):
            await inner.aclose()  # its next request opens another connection
        try:
            return await self._exchange(inner, request)
        except BaseException:
            if inner not in self._idle:
                self._idle.append(inner)
            raise

    async def _exchange(self, inner: httpx2.AsyncBaseTransport, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"
        response = await inner.handle_async_request(request)
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding == "identity":
            encoding = ""
        stream = response.stream
        if encoding not in {"", "gzip", "x-gzip", "deflate"} or not isinstance(stream, httpx2.AsyncByteStream):
            await response.aclose()
            raise httpx2.DecodingError(f"unasked content encoding {encoding[:20]!r}", request=request)
        response.headers.pop("content-encoding", None)
        limit = BODY_MAX if response.status_code < 300 else ERROR_BODY_MAX  # noqa: PLR2004 - a success
        response.stream = _Bounded(stream, encoding, limit, lambda: self._idle.append(inner))
        return response

    async def aclose(self) -> None:
        for inner in self._all:
            await inner.aclose()


def _has_unread(transport: Any) -> bool:
    """Tell whether a server said more on an idle connection than it was asked: that would be taken for the answer to the next prompt.

    The library looks only for what has not been received yet, and has no way to ask for the rest: hence its inner names,
    which a test holds on to. A proxied connection lies in another.
    """
    for outer in transport._pool.connections:  # noqa: SLF001 - see above
        inner = outer
        while (deeper := getattr(inner, "_connection", None)) is not None:
            inner = deeper
        state = getattr(inner, "_h11_state", None)
        if state is not None and state.trailing_data[0]:
            return True
    return False


@cache
def _tls(ca_file: str | None) -> ssl.SSLContext:
    """Loading the certificate store takes 20 ms; one context serves every session of the process."""
    if ca_file is not None:
        return ssl.create_default_context(cafile=ca_file)
    return httpx2.create_ssl_context(trust_env=False)


def client(credentials: Credentials) -> httpx2.AsyncClient:
    """Return the HTTP client for one session. ``extra`` may name a ``proxy`` URL and a ``ca_file``.

    Raises:
        ProviderFault: one of them cannot be used.
    """
    try:
        return _client(credentials)
    except (
        OSError,
        ValueError,
        ImportError,
        httpx2.InvalidURL,
    ) as error:  # ImportError: a kind of proxy that is not installed
        text = f"the proxy or the certificates cannot be used: {_line(str(error))}"
        raise ProviderFault(text, code="unreachable", billable="no") from error


def _client(credentials: Credentials) -> httpx2.AsyncClient:
    tls = _tls(credentials.extra.get("ca_file"))

    def one() -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx2.AsyncHTTPTransport(
            verify=tls, limits=limits, proxy=credentials.extra.get("proxy"), trust_env=False
        )

    transport = _BoundedTransport(one)
    transport.make_ready()
    return httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def timeout(total_s: float) -> httpx2.Timeout:
    """Return per-read limits no longer than the total; the total itself is enforced around the whole attempt."""
    return httpx2.Timeout(total_s, connect=min(total_s, CONNECT_S))


FOREIGN: tuple[type[Exception], ...] = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    httpx2.CookieConflict,
    BodyTooLarge,
    zlib.error,
    OSError,
    OverflowError,
    ExceptionGroup,  # of connections that were tried side by side
    ValueError,  # undecodable text, JSON that is none, a header that cannot be sent
)
"""What may come out of an SDK beside its own errors."""

_REFUSED_BEFORE_SENDING = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
    httpx2.InvalidURL,
    UnicodeEncodeError,
    OverflowError,  # a port beyond all ports
)


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        if isinstance(current, ExceptionGroup):
            chain += current.exceptions
        current = current.__cause__ or current.__context__
    return chain


def wire_fault(error: BaseException, where: str) -> ProviderFault:  # noqa: PLR0911 - a decision table
    """Translate an error that is not an answer of the provider's: by the most telling exception in its chain."""
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, ProviderFault):
            return cause
        if isinstance(cause, BodyTooLarge):
            return ProviderFault(f"{where}: {cause}", code="too_large_answer", billable="unknown")
        if isinstance(cause, _REFUSED_BEFORE_SENDING):
            transient = isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
            text = f"{where} cannot be reached: {_line(str(cause)) or type(cause).__name__}"
            return ProviderFault(text, code="unreachable", billable="no", retryable=transient)
    for cause in chain:
        if isinstance(cause, (httpx2.TimeoutException, TimeoutError)):
            return ProviderFault(f"{where} did not answer in time", code="timeout", billable="unknown", retryable=True)
        if isinstance(cause, (httpx2.DecodingError, zlib.error, ValueError)):
            return bad_answer(where, _line(str(cause)))
        if isinstance(cause, (httpx2.TransportError, httpx2.StreamError, OSError)):
            text = f"the connection to {where} broke: {_line(str(cause)) or type(cause).__name__}"
            return ProviderFault(text, code="connection_lost", billable="unknown", retryable=True)
    return ProviderFault(f"{where}: {type(error).__name__}: {_line(str(error))}", code="failed", billable="unknown")


def bad_answer(where: str, why: str, *, request_id: str | None = None) -> ProviderFault:
    """A response that is not what the API promises. It may have been paid for."""
    return ProviderFault(
        f"{where} sent an unusable answer: {why}",
        code="bad_answer",
        billable="unknown",
        retryable=True,
        request_id=request_id,
    )


_SERVER = 500
"""From here on a status is the server's failure."""

_SPENT = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "insufficient_quota",
        "billing_hard_limit_reached",
    }
)
_SPENT_TEXT = re.compile(
    r"usage limits|spend(ing)?[ _]limit|credit balance is too low|exceeded your current quota", re.IGNORECASE
)
_TOO_LONG_TEXT = re.compile(
    r"prompt is too long|context[ _](length|size|window)|maximum context|exceed_context_size|input is too (long|large)",
    re.IGNORECASE,
)
_BY_STATUS = {
    401: "authentication",
    402: "billing",
    403: "permission",
    404: "not_found",
    413: "too_large",
    429: "rate_limited",
}


def status_fault(
    where: str, status: int, headers: Mapping[str, str], body: object, *, request_id: str | None, secret: str
) -> ProviderFault:
    """Translate an HTTP error status.

    ``body`` is decoded JSON, text or None; none of it is trusted to have a shape, and some providers quote the key in it.
    """
    kind, code, message = _describe(body)
    if secret != NO_KEY:
        message = message.replace(secret, "***")
    stated = isinstance(body, Mapping) and bool(kind or code or message)
    name, meaning = _refusal(status, code, message) if status < _SERVER else _breakdown(status, kind, stated=stated)
    if headers.get("x-should-retry", "").lower() == "false":
        meaning["retryable"] = False
    return ProviderFault(
        f"{where} refused ({status}{': ' + message if message else ''})",
        code=name,
        retry_after_s=retry_after(headers),
        request_id=short_id(request_id),
        status=status,
        **meaning,
    )


def _refusal(status: int, code: str, message: str) -> tuple[str, dict[str, Any]]:
    """Read a status below 500: the provider turned the request down, so nothing was made and nothing is owed."""
    again: dict[str, Any] = {"billable": "no", "retryable": True}
    if code in _SPENT or _SPENT_TEXT.search(message):
        return "spend_limit", {"billable": "no"}
    if status == 429:  # noqa: PLR2004
        return "rate_limited", again | {"rate_limited": True}
    if status in {408, 409, 425}:
        return "unavailable", again
    if status == 499:  # noqa: PLR2004 - the connection was seen to close while the answer was being made
        return "connection_lost", {"billable": "unknown", "retryable": True}
    if status in {400, 413, 422} and (_TOO_LONG_TEXT.search(message) or code == "context_length_exceeded"):
        return "context_length", {"billable": "no"}
    return _BY_STATUS.get(status, "bad_request" if status >= 400 else "redirect"), {"billable": "no"}  # noqa: PLR2004


def _breakdown(status: int, kind: str, *, stated: bool) -> tuple[str, dict[str, Any]]:
    """Read a status from 500 up.

    The provider's own error says that nothing was made. A page of some gateway between, or a timeout of either, says
    nothing about what went on behind it.
    """
    if status == 529 or kind == "overloaded_error":  # noqa: PLR2004
        return "overloaded", {"billable": "no", "retryable": True, "overloaded": True}
    known = status == 503 or (stated and status not in {504, 524})  # noqa: PLR2004 - 503: nobody took the request
    return "server_error", {"billable": "no" if known else "unknown", "retryable": True, "overloaded": True}


def _describe(body: object) -> tuple[str, str, str]:
    """Return ``(type, code, message)`` of an error body of either API, empty where it has none."""
    if isinstance(body, str):
        return "", "", _line(body)
    if not isinstance(body, Mapping):
        return "", "", ""
    error = body.get("error", body)
    if isinstance(error, str):
        return "", "", _line(error)
    if not isinstance(error, Mapping):
        return "", "", ""
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, Mapping) else error.get("code")
    return _text(error.get("type")), _text(code), _line(_text(error.get("message")))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _line(text: str, limit: int = 300) -> str:
    """One printable line of foreign text, for a person."""
    flat = "".join(ch if ch.isprintable() else " " for ch in text[: limit * 2])
    return " ".join(flat.split())[:limit]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read ``retry-after-ms`` or ``retry-after`` (seconds or a date); None for anything that is no time to come."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            seconds = _until(value)
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, RETRY_AFTER_MAX)
    return None


def _until(date: str) -> float:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return math.nan


async def drain(events: AsyncIterator[bytes]) -> None:
    """Read a stream to its end after the answer in it is whole. However it ends, and if it does not, the answer stands."""
    with contextlib.suppress(TimeoutError, *FOREIGN):
        async with asyncio.timeout(TAIL_S):
            async for _ in events:
                pass


async def sse(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event. Event names are ignored: both APIs repeat them inside the data."""
    buffer = bytearray()
    data: list[bytes] = []
    async for chunk in chunks:
        buffer += chunk
        if b"\n" not in chunk:
            continue  # a line may be as long as the whole body: look at each byte once
        *lines, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        for raw in lines:
            line = bytes(raw).rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    last = bytes(buffer).rstrip(b"\r")
    if last.startswith(b"data:"):
        data.append(last[5:].removeprefix(b" "))
    if data:
        yield b"\n".join(data)
