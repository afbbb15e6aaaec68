"""A model provider that misbehaves on demand: a real HTTP server that speaks both APIs well enough for unmodified SDKs.

``FaultServer`` listens on loopback. Each request takes the next entry of ``plan`` (a list of faults, used up in order), then
``default``. A fault is the name of a method ``fault_<name>`` or a :class:`Fault` with arguments. ``requests`` counts by prompt, ``log`` keeps
bodies and headers, ``active_peak`` tells how many were in flight at once. ``billed`` counts the answers a provider would charge for.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

USAGE = {"input": 11, "output": 7, "cache_read": 3, "cache_write": 2}


@dataclass
class Fault:
    """A fault with arguments."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt: str


class FaultServer:
    def __init__(self, *, default="ok", latency_s=0.0):
        self.plan: list[str | Fault] = []
        self.default: str | Fault = default
        self.latency_s = latency_s
        self.answer = "pong"
        self.requests: Counter[str] = Counter()
        self.log: list[Seen] = []
        self.active = 0
        self.active_peak = 0
        self.billed = 0
        self.arrived = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=64 * 1024 * 1024)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _connection(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while (seen := await self._read(reader)) is not None:
                if not await self._serve(seen, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            with suppress(Exception):
                writer.close()

    async def _read(self, reader) -> Seen | None:
        head = await reader.readuntil(b"\r\n\r\n")
        start, *lines = head.decode().split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        content = body["messages"][-1]["content"] if body.get("messages") else ""
        prompt = content if isinstance(content, str) else content[-1]["text"]
        return Seen(start.split()[1], headers, body, prompt)

    async def _serve(self, seen: Seen, writer) -> bool:
        self.log.append(seen)
        self.requests[seen.prompt] += 1
        self.arrived.set()
        chosen = self.plan.pop(0) if self.plan else self.default
        fault = Fault(chosen) if isinstance(chosen, str) else chosen
        self.active += 1
        self.active_peak = max(self.active_peak, self.active)
        try:
            await asyncio.sleep(self.latency_s)
            wire = _Wire(writer, seen, self)
            return await getattr(wire, f"fault_{fault.name}")(**fault.args) is not False
        finally:
            self.active -= 1


class _Wire:
    """One response. ``fault_*`` return False when the connection cannot be used again."""

    def __init__(self, writer, seen: Seen, server: FaultServer):
        self.writer = writer
        self.seen = seen
        self.server = server
        self.openai = "chat/completions" in seen.path

    # plain HTTP

    async def send(self, status, body, *, headers=None, media="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"content-type": media, "content-length": len(data), "request-id": "req_1", "x-request-id": "req_1"}
        self.head(status, fields | (headers or {}))
        self.writer.write(data)
        await self.writer.drain()

    def head(self, status, fields):
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items())]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes):
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    def begin_stream(self):
        fields = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        self.head(200, fields | {"request-id": "req_1", "x-request-id": "req_1"})

    def reset(self):
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(__import__("socket").SOL_SOCKET, __import__("socket").SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()
        return False

    # both APIs' shapes

    def error(self, kind, message, **details):
        if self.openai:
            return {"error": {"type": kind, "message": message, "code": details.get("error_code")}}
        error = {"type": kind, "message": message} | ({"details": details} if details else {})
        return {"type": "error", "error": error, "request_id": "req_1"}

    def events(self, *, text=None, usage=None, stop=None, thinking=False, refuse=False):
        text = self.server.answer if text is None else text
        usage = self.usage() if usage is None else usage
        if self.openai:
            return self.openai_events(text, usage, stop, refuse)
        return self.anthropic_events(text, usage, stop, thinking, refuse)

    def usage(self, **counts):
        n = USAGE | counts
        if self.openai:
            total = n["input"] + n["cache_read"] + n["cache_write"]
            details = {"cached_tokens": n["cache_read"], "cache_write_tokens": n["cache_write"]}
            return {"prompt_tokens": total, "completion_tokens": n["output"], "prompt_tokens_details": details}
        return {
            "input_tokens": n["input"],
            "output_tokens": n["output"],
            "cache_read_input_tokens": n["cache_read"],
            "cache_creation_input_tokens": n["cache_write"],
        }

    def anthropic_events(self, text, usage, stop, thinking, refuse):
        model = self.seen.body["model"]
        first = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
        yield {"type": "message_start", "message": first | {"usage": usage, "stop_reason": None}}
        yield {"type": "ping"}
        if thinking:
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}
            yield {"type": "content_block_stop", "index": 0}
        place = 1 if thinking else 0
        if text:
            yield {"type": "content_block_start", "index": place, "content_block": {"type": "text", "text": ""}}
            for part in (text[:2], text[2:]):
                yield {"type": "content_block_delta", "index": place, "delta": {"type": "text_delta", "text": part}}
            yield {"type": "content_block_stop", "index": place}
        reason = "refusal" if refuse else stop or "end_turn"
        last = {name: usage[name] for name in ("output_tokens",) if name in usage}
        yield {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": last}
        yield {"type": "message_stop"}

    def openai_events(self, text, usage, stop, refuse):
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.seen.body["model"]}
        reason = {"max_tokens": "length"}.get(stop, stop) or "stop"

        def choice(delta, finish=None):
            return base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield choice({"role": "assistant", "content": ""})
        for part in (text[:2], text[2:]) if text else ():
            yield choice({"content": part})
        if refuse:
            yield choice({"refusal": "I cannot"})
        yield choice({}, reason)
        if usage and (self.seen.body.get("stream_options") or {}).get("include_usage"):
            yield base | {"choices": [], "usage": usage}
        yield "[DONE]"

    def encode(self, event) -> bytes:
        if isinstance(event, str):
            return f"data: {event}\n\n".encode()
        name = b"" if self.openai else f"event: {event['type']}\n".encode()
        return name + b"data: " + json.dumps(event).encode() + b"\n\n"

    async def stream(self, events, *, until=None, pause_s=0.0):
        self.begin_stream()
        for number, event in enumerate(events):
            if number == until:
                return
            await self.chunk(self.encode(event))
            await asyncio.sleep(pause_s)
        self.server.billed += 1
        await self.chunk(b"")

    def message(self, usage=None, text=None):
        text = self.server.answer if text is None else text
        usage = self.usage() if usage is None else usage
        model = self.seen.body["model"]
        if self.openai:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model} | {
                "choices": [choice],
                "usage": usage,
            }
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model} | {
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": usage,
        }

    # the faults

    async def fault_ok(self, **shape):
        if not self.seen.body.get("stream") and not set(shape) - {"text", "usage"}:
            self.server.billed += 1
            return await self.send(200, self.message(**shape))
        return await self.stream(self.events(**shape))

    async def fault_whole(self):
        """Answers in one piece although a stream was asked for."""
        self.server.billed += 1
        await self.send(200, self.message())

    async def fault_status(self, status, *, kind="api_error", message="no", headers=None, **details):
        await self.send(status, self.error(kind, message, **details), headers=headers)

    async def fault_rate_limited(self, retry_after="0"):
        headers = {} if retry_after is None else {"retry-after": retry_after}
        await self.send(429, self.error("rate_limit_error", "slow down"), headers=headers)

    async def fault_spend_limit_429(self):
        code = "insufficient_quota" if self.openai else "enforced_spend_limit_reached"
        await self.send(
            429, self.error("rate_limit_error", "no more money", error_code=code), headers={"retry-after": "1"}
        )

    async def fault_spend_limit_400(self):
        text = "You have reached your specified API usage limits. You will regain access on 2027-01-01."
        await self.send(400, self.error("invalid_request_error", text))

    async def fault_overloaded(self):
        await self.send(529, self.error("overloaded_error", "Overloaded"))

    async def fault_server_error(self):
        await self.send(500, self.error("api_error", "Internal server error"))

    async def fault_gateway(self, status=502):
        await self.send(status, b"<html>Bad gateway</html>", media="text/html")

    async def fault_too_long(self):
        code = {"error_code": "context_length_exceeded"} if self.openai else {}
        text = (
            "This model's maximum context length is 10" if self.openai else "prompt is too long: 11 tokens > 10 maximum"
        )
        await self.send(400, self.error("invalid_request_error", text, **code))

    async def fault_unsupported(self, parameter, message="Unsupported parameter: '{}' is not supported"):
        """Refuses while the parameter is in the request, answers without it."""
        if parameter in self.seen.body:
            return await self.send(400, self.error("invalid_request_error", message.format(parameter)))
        return await self.fault_ok()

    async def fault_reset(self):
        return self.reset()

    async def fault_reset_in_body(self):
        self.begin_stream()
        await self.chunk(self.encode(next(iter(self.events()))))
        return self.reset()

    async def fault_cut(self):
        """The stream ends in good order, but before the message does."""
        await self.stream(self.events(), until=3)
        await self.chunk(b"")

    async def fault_reset_after_the_end(self):
        """The message is whole, the body is not: the connection breaks instead of ending."""
        self.begin_stream()
        for event in self.events():
            await self.chunk(self.encode(event))
        self.server.billed += 1
        await asyncio.sleep(0.05)
        return self.reset()

    async def fault_no_end(self):
        """The message is whole, and the connection stays silent and open."""
        self.begin_stream()
        for event in self.events():
            await self.chunk(self.encode(event))
        await asyncio.sleep(3600)

    async def fault_whole_with(self, **fields):
        """An answer in one piece, with other fields; None leaves one out."""
        whole = {name: value for name, value in (self.message() | fields).items() if value is not None}
        await self.send(200, whole)

    async def fault_two_answers(self):
        """Says more than it was asked, in one piece with the answer."""
        data = b"".join(
            b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)
            for text in (json.dumps(self.message(text=text)).encode() for text in ("pong", "another's"))
        )
        self.writer.write(data)
        await self.writer.drain()

    async def fault_headers(self, **headers):
        await self.send(200, self.message(), headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def fault_hang_up(self):
        """The connection closes in the middle of a chunked body."""
        await self.stream(self.events(), until=3)
        return False

    async def fault_stream_error(self, kind="overloaded_error"):
        self.begin_stream()
        await self.chunk(self.encode(next(iter(self.events()))))
        event = {"type": "error"} | self.error(kind, "went wrong")
        await self.chunk(self.encode(event))
        await self.chunk(b"")

    async def fault_drip(self, pause_s=0.05):
        """Never silent for long, and never done."""
        self.begin_stream()
        await self.chunk(self.encode(next(iter(self.events()))))
        while True:
            await self.chunk(b": keep-alive\n\n")
            await asyncio.sleep(pause_s)

    async def fault_silent(self):
        await asyncio.sleep(3600)

    async def fault_html(self):
        await self.send(200, b"<html>Please sign in</html>", media="text/html")

    async def fault_truncated_json(self):
        await self.send(200, json.dumps(self.message()).encode()[:-20])

    async def fault_truncated_event(self):
        self.begin_stream()
        await self.chunk(self.encode(next(iter(self.events())))[:-30] + b"\n\n")
        await self.chunk(b"")

    async def fault_gzip_bomb(self, status=200, expanded=150 * 1024 * 1024):
        bomb = gzip.compress(b"data: " + b"x" * expanded, 6)
        await self.send(status, bomb, headers={"content-encoding": "gzip"}, media="text/event-stream")

    async def fault_gzip(self):
        """Compresses unasked, as some gateways do."""
        data = b"".join(self.encode(event) for event in self.events())
        await self.send(200, gzip.compress(data), headers={"content-encoding": "gzip"}, media="text/event-stream")

    async def fault_encoding(self, name="br"):
        await self.send(200, b"\x01\x02", headers={"content-encoding": name}, media="text/event-stream")

    async def fault_usage(self, **counts):
        """Counts as given; ``missing=True`` leaves all of them out."""
        missing = counts.pop("missing", False)
        await self.stream(self.events(usage={} if missing else self.usage(**counts)))

    async def fault_refusal(self):
        await self.stream(self.events(text="", refuse=True))

    async def fault_thinks_unless_told(self):
        """A model that thinks by default, with a limit that its thoughts use up."""
        body = self.seen.body
        told = body.get("reasoning_effort") == "none" if self.openai else body.get("thinking") == {"type": "disabled"}
        if told:
            await self.fault_ok()
        else:
            await self.stream(self.events(text="", thinking=True, stop="max_tokens"))

    async def fault_thinking_only(self):
        await self.stream(self.events(text="", thinking=True, stop="max_tokens"))

    async def fault_truncated_answer(self):
        await self.stream(self.events(stop="max_tokens"))

    async def fault_redirect(self, to="http://192.0.2.1/"):
        await self.send(307, b"", headers={"location": to})
